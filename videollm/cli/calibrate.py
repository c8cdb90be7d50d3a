"""`videollm calibrate`: what each layer of a model needs to remember."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from videollm.cli import options
from videollm.cli.errors import CommandError, check_whole
from videollm.cli.layer_plot import layer_plot
from videollm.cli.loading import MAX_SIDE, load_model, pick_device, quieten_transformers, refuse_namesake
from videollm.files import write_whole

if TYPE_CHECKING:
    from videollm.budgets.calibration import Calibration
    from videollm.depth_lm import DepthLM

MEASURED_EVERY = 512  # tokens of a clip
TEXT_TOKENS = 16384
TEXT_LENGTH = 4096  # read together of a text


def calibrate(
    model: Annotated[str, typer.Argument(help="pocket, a folder or a hub id; a language model, too")],
    clips: Annotated[
        list[str] | None,
        typer.Argument(
            help="clips; for a language model text files, by default Python's own reference",
            show_default=False,
        ),
    ] = None,
    budget: Annotated[
        str, typer.Option("--budget", metavar="SHARE", help="show how such a budget is shared out")
    ] = "20%",
    fps: options.Fps = 2.0,
    device: options.Device = "auto",
) -> None:
    """Measure what each layer needs to remember, so that --budget gives more to those that need more.

    The measurement is kept beside the model, or in the user's cache folder for one that has no folder here,
    with a plot; --budget of the other commands finds it there.

    \b
    Examples:
    videollm calibrate pocket clips/*.mp4
    videollm narrate camera:0 --budget 20%
    """
    refuse_namesake()
    from videollm.budgets import build_budgets
    from videollm.budgets.calibration import calibration_file
    from videollm.checkpoints import is_video_model

    sees = is_video_model(model)
    if sees and not clips:
        raise CommandError(f"{model} sees: give clips to calibrate it with")
    if sees:
        loaded, calibration = _on_clips(model, clips or [], fps, device, budget)
    else:
        loaded, calibration = _on_text(model, clips or [], device, budget)
    entries = build_budgets(loaded, budget, calibration=calibration).entries
    path = calibration_file(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    plot = layer_plot(calibration, budget, entries)
    write_whole(path.with_suffix(".svg"), plot.encode())
    write_whole(path, _as_json(calibration))
    table = Table("layer", "attention needs", "output needs", f"of {budget}", title=f"{model}, entries")
    rows = zip(calibration.attention, calibration.output, entries, strict=True)
    for layer, (attention, output, kept) in enumerate(rows):
        table.add_row(str(layer), f"{attention:.0f}", f"{output:.0f}", str(kept))
    Console().print(table)
    Console(stderr=True).print(
        f"{path}, and the plot beside it, from {calibration.measurements} measurements"
    )


def _on_clips(
    model: str, clips: list[str], fps: float, device: str, budget: str
) -> tuple[DepthLM, Calibration]:
    loaded = load_model(model, device)
    _check_budget(loaded, budget)
    from stream.engine import Engine
    from stream.session import Session
    from stream.sources import open_source
    from videollm.layer_needs import measure, measuring_budgets, summarize

    session = Session(loaded, engine=Engine(loaded, budget=measuring_budgets(loaded)))
    cache, needs, tokens = session.engine.cache, [], 0
    with _progress() as progress:
        task = progress.add_task("", total=None)
        for number, clip in enumerate(clips, 1):
            session.reset()
            measured_at = 0
            with open_source(clip, fps, max_side=MAX_SIDE) as source:
                for frame in source:
                    session.step(frame)
                    if session.seen_tokens - measured_at >= MEASURED_EVERY:
                        needs.append(measure(cache, session.slot))
                        measured_at = session.seen_tokens
                    where = f"clip {number} of {len(clips)}, {frame.time:.0f} s"
                    progress.update(task, description=f"{where}, {len(needs)} measurements")
                check_whole(source)
            if session.seen_tokens > measured_at:
                needs.append(measure(cache, session.slot))
            tokens += session.seen_tokens
    if not needs:
        raise CommandError("the clips have no frames to calibrate with; give others")
    return loaded, summarize(loaded, model, clips, tokens, needs)


def _on_text(model: str, files: list[str], device: str, budget: str) -> tuple[DepthLM, Calibration]:
    quieten_transformers()
    from train import conversion
    from train.long_text import calibrate as calibrate_on

    try:
        text = conversion.read_texts([Path(file) for file in files]) if files else conversion.packaged_text()
        loaded, tokenizer = conversion.load(model)
    except ValueError as error:
        raise CommandError(str(error)) from error
    _check_budget(loaded, budget)
    loaded.to(device=pick_device(device))  # type: ignore[call-arg]
    ids = conversion.Texts.of(tokenizer, text).learned[:TEXT_TOKENS].tolist()
    length = min(TEXT_LENGTH, loaded.context // 2)
    name = ", ".join(files) or "Python's reference"
    with _progress() as progress:
        task = progress.add_task("", total=len(ids))

        def told(read: int) -> None:
            progress.update(task, completed=read, description=f"{read} of {len(ids)} tokens")

        return loaded, calibrate_on(loaded, model, name, ids, length, told)


def _check_budget(model: DepthLM, budget: str) -> None:
    """Before minutes are spent on measuring."""
    from videollm.budgets import build_budgets

    try:
        build_budgets(model, budget)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--budget") from error


def _progress() -> Progress:
    return Progress(
        SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=Console(stderr=True)
    )


def _as_json(calibration: Calibration) -> bytes:
    import msgspec

    return msgspec.json.format(msgspec.json.encode(calibration)) + b"\n"
