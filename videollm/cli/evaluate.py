"""`videollm evaluate`: a model on the benchmarks of the field."""

from __future__ import annotations

import importlib.util
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from videollm.cli import options
from videollm.cli.bench import circumstances
from videollm.cli.errors import CommandError
from videollm.cli.loading import load_for_figures, refuse_namesake

if TYPE_CHECKING:
    from train.data.annotations import Skipped
    from train.evaluation.bench import Bench
    from videollm import VideoLLM

LIBRARIES = ("rapidfuzz", "sacrebleu", "rouge_score")
SHOWN = 4  # figures beside the progress bar


class BenchName(StrEnum):
    narration = "narration"
    coin_step = "coin-step"
    coin_next = "coin-next"
    coin_task = "coin-task"
    coin_procedure = "coin-procedure"
    coin_procedure_plus = "coin-procedure+"
    anticipation = "anticipation"
    ovo_bench = "ovo-bench"
    streaming_bench = "streaming-bench"


def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="pocket, a folder or a hub id")],
    bench: Annotated[BenchName, typer.Argument(metavar="BENCH", help="what to measure; see below")],
    data: Annotated[
        Path,
        typer.Option(
            "--data",
            help='a folder that "videollm prepare" wrote; the question file of ovo-bench and streaming-bench',
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="the folder of the figures; by default evaluation/BENCH", show_default=False
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", help="of the annotation; all where not given", show_default=False)
    ] = None,
    videos: Annotated[
        Path | None,
        typer.Option(
            "--videos",
            metavar="FOLDER",
            help="the clips: needed by ovo-bench and streaming-bench, drawn behind narration's kept tokens",
            show_default=False,
        ),
    ] = None,
    taxonomy: Annotated[
        Path | None,
        typer.Option("--taxonomy", help="of anticipation: fho_lta_taxonomy.json", show_default=False),
    ] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=1, help="of a dialogue of narration")] = 40.0,
    threshold: options.Threshold = None,
    device: options.Device = "auto",
) -> None:
    """Measure a model on a benchmark, and leave figures, a table and plots in a folder.

    Run again, it goes on where it was stopped: what is measured of a video stays.

    \b
    narration        LM-PPL, TimeDiff, Fluency, LM-Correctness as VideoLLM-online
                     defines them; BLEU-4, chrF and ROUGE-L of what is said
    coin-TASK        COIN's step, next, task, procedure, procedure+: accuracy
    anticipation     Ego4D: edit distance of 20 actions (verb, noun, action)
    ovo-bench        accuracy by task, each question at its moment
    streaming-bench  the same

    \b
    Examples:
    videollm evaluate pocket narration --data prepared/clips --split val
    videollm evaluate runs/coin/model coin-next --data prepared/coin --split testing
    videollm evaluate runs/lta/model anticipation --data prepared/lta --taxonomy fho_lta_taxonomy.json
    videollm evaluate pocket ovo-bench --data ovo_bench_new.json --videos OVO/src_videos
    """
    refuse_namesake()
    if missing := [name for name in LIBRARIES if importlib.util.find_spec(name) is None]:
        raise CommandError(
            f"{', '.join(missing)} is not installed; install it with: pip install -e '.[evaluate]'"
        )
    if not data.exists():
        raise CommandError(f"there is no {data}; --data names what BENCH is measured on")
    loaded = load_for_figures(model, device)
    from train.data.annotations import Skipped
    from train.data.shards import ShardError
    from train.evaluation import bench as benches
    from train.results import Results

    chosen = loaded.config.threshold if threshold is None else threshold
    folder, skipped = out or Path("evaluation") / bench.value, Skipped()
    settings = {
        "model": model,
        "bench": bench.value,
        "data": str(data),
        "split": split,
        "threshold": chosen,
        "seconds": seconds if bench is BenchName.narration else None,
    }
    try:
        made = _bench(bench, loaded, data, split, videos, taxonomy, seconds, chosen, skipped)
        folder.mkdir(parents=True, exist_ok=True)
        results = Results(folder / benches.RESULTS, settings, circumstances())
    except (ValueError, ShardError) as error:
        raise CommandError(str(error)) from error
    console = Console(stderr=True)
    if skipped.counts:
        console.print(f"left out: {escape(str(skipped))}", style="dim")
    columns = BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}")
    figures: dict[str, float] = {}
    if kept := [row for item, row in results.rows.items() if item in made.items]:
        figures = made.summary(kept)
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=len(made.items), completed=len(kept))

        def told(item: str, so_far: dict[str, float]) -> None:
            figures.update(so_far)
            shown = ", ".join(f"{name} {value:.3g}" for name, value in list(so_far.items())[:SHOWN])
            progress.update(task, advance=1, description=shown)

        benches.evaluate(made, results, folder, told)
    table = Table("figure", "value", title=f"{escape(model)}, {bench.value}")
    for name, value in figures.items():
        table.add_row(name, f"{value:.4g}")
    Console().print(table)
    console.print(f"figures, table and plots are in {folder}")


def _bench(
    name: BenchName,
    model: VideoLLM,
    data: Path,
    split: str | None,
    videos: Path | None,
    taxonomy: Path | None,
    seconds: float,
    threshold: float,
    skipped: Skipped,
) -> Bench:
    """The benchmark of that name. CommandError for an option that it lacks; ValueError and ShardError for
    data that it can't be measured on."""
    if name is BenchName.narration:
        from train.evaluation.narration import NarrationBench

        return NarrationBench(model, data, split, seconds, threshold, videos, skipped)
    if name.value.startswith("coin-"):
        from train.evaluation.coin import CoinBench

        return CoinBench(model, data, split, name.value.removeprefix("coin-"))
    if name is BenchName.anticipation:
        from train.evaluation.anticipation import AnticipationBench, Taxonomy

        if taxonomy is None:
            raise CommandError("anticipation needs verbs and nouns: --taxonomy fho_lta_taxonomy.json")
        return AnticipationBench(model, data, split, Taxonomy.read(taxonomy))
    if videos is None:
        raise CommandError(f"{name.value} needs the clips: --videos FOLDER")
    from stream.session import Session
    from train.evaluation import ovo_bench, streaming_bench
    from train.evaluation.streamed import StreamedBench

    session = Session(model, threshold=threshold)
    if name is BenchName.ovo_bench:
        return ovo_bench.OvoBench(session, model.config.fps, videos, ovo_bench.read(data), skipped)
    return StreamedBench(session, model.config.fps, videos, streaming_bench.read(data), skipped)
