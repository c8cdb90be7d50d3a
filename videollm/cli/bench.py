"""`videollm bench`: how fast it is on this machine, beside named baselines of the same run."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from videollm.cli.errors import CommandError
from videollm.cli.loading import pick_device, refuse_namesake

bench = typer.Typer(no_args_is_help=True, help="Measure beside named baselines.")
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")]
Json = Annotated[Path | None, typer.Option("--json", help="write the figures there, too")]


@bench.command()
def kernels(device: Device = "auto", json_file: Json = None) -> None:
    """Every kernel beside its reference, its compiled reference, libraries, and a plain copy.

    \b
    Examples:
    videollm bench kernels --device cuda --json benchmarks/kernels.json
    """
    refuse_namesake()
    from kernels.bench import measure

    with Console(stderr=True).status("measuring"):
        rows = measure(pick_device(device))
    table = Table("operation", "size", "way", "median ms", "10 % to 90 %", "of the copy bandwidth")
    for row in rows:
        share = "" if row.floor_ms is None else f"{row.floor_ms / row.median_ms:.0%}"
        spread = f"{row.low_ms:.3f} to {row.high_ms:.3f}"
        table.add_row(row.operation, row.size, row.way, f"{row.median_ms:.3f}", spread, share)
    _show(table, {"rows": [asdict(row) for row in rows]}, json_file)


@bench.command()
def frame(
    model: Annotated[str, typer.Option(help="pocket, a folder or a hub id")] = "pocket",
    json_file: Json = None,
) -> None:
    """A frame's step on the CPU beside the least that this machine could take: in float32, and prepared for
    inference in int8, with all tokens in every layer and with mixture-of-depths (MoD). MiB are weights.

    \b
    Examples:
    videollm bench frame --json benchmarks/frame.json
    """
    refuse_namesake()
    with Console(stderr=True).status("measuring"):
        from stream.measure import measure
        from videollm import VideoLLM

        here, rows = measure(lambda: VideoLLM.from_pretrained(model))
    table = Table("way", "frame ms", "10 to 90 %", "word ms", "GFLOP", "MiB", "floor ms", "of floor")
    for row in rows:
        figures = (
            f"{row.frame_ms:.1f}",
            f"{row.low_ms:.1f} to {row.high_ms:.1f}",
            f"{row.word_ms:.1f}",
            f"{row.gflop:.2f}",
            f"{row.weight_mib:.0f}",
            f"{row.floor_ms:.1f}",
            f"{row.floor_ratio:.1f}x",
        )
        table.add_row(row.way, *figures)
    table.caption = f"{here.gflops:.0f} GFLOP/s in float32, {here.copy_gbps:.1f} GB/s copied"
    results = [asdict(row) | {"floor_ratio": row.floor_ratio} for row in rows]
    _show(table, {"model": model, "floor": asdict(here), "rows": results}, json_file)


@bench.command()
def decoder(
    model: Annotated[str, typer.Option(help="pocket, or another on SmolLM2")] = "pocket",
    json_file: Json = None,
) -> None:
    """The decoder alone on the CPU, a word, a frame's tokens and those of eight frames at a time, beside
    llama.cpp on the same weights.

    \b
    It needs a compiler once: pip install llama-cpp-python
    \b
    Examples:
    videollm bench decoder --json benchmarks/decoder.json
    """
    refuse_namesake()
    if importlib.util.find_spec("llama_cpp") is None:
        raise CommandError("llama.cpp is not installed; install it with: pip install llama-cpp-python")
    with Console(stderr=True).status("measuring"):
        from stream.peers import measure
        from videollm import VideoLLM

        rows = measure(lambda: VideoLLM.from_pretrained(model))
    table = Table("way", "tokens", "median ms", "10 to 90 %")
    for row in rows:
        table.add_row(
            row.way, str(row.tokens), f"{row.median_ms:.1f}", f"{row.low_ms:.1f} to {row.high_ms:.1f}"
        )
    _show(table, {"model": model, "rows": [asdict(row) for row in rows]}, json_file)


@bench.command()
def train(
    device: Device = "auto",
    shape: Annotated[
        str, typer.Option(help="llama-3-8b, smollm2-135m or tiny; by the device where not given")
    ] = "",
    json_file: Json = None,
) -> None:
    """A training step with low-rank adapters: all tokens in every layer, beside mixture-of-depths (MoD).

    \b
    Examples:
    videollm bench train --device cuda --json benchmarks/train.json
    videollm bench train --shape smollm2-135m --device cpu
    """
    refuse_namesake()
    chosen = pick_device(device)
    name = shape or ("llama-3-8b" if chosen.type == "cuda" else "smollm2-135m")
    from train.measure import SHAPES, WAYS, measure

    if name not in SHAPES:
        raise typer.BadParameter(f"there is no shape {name}; there are {', '.join(SHAPES)}")
    groups = 2 * len(SHAPES[name].loads)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        rows = list(progress.track(measure(chosen, SHAPES[name]), total=groups * len(WAYS)))
    columns = ("frames", "way", "checkpoints", "step ms", "range", "peak MiB", "time", "memory")
    table = Table(*columns, title=f"{name}, time and memory as shares of full computation's")
    for row in rows:
        table.add_row(
            row.load,
            row.way,
            "yes" if row.checkpointing else "no",
            f"{row.step_ms:.0f}",
            f"{row.low_ms:.0f} to {row.high_ms:.0f}",
            f"{row.peak_mib:.0f}",
            f"{row.time_of_full:.2f}",
            f"{row.memory_of_full:.2f}",
        )
    _show(table, {"shape": name, "rows": [asdict(row) for row in rows]}, json_file)


@bench.command()
def streams(
    device: Device = "auto",
    model: Annotated[
        str,
        typer.Option(
            help="pocket, a folder, a hub id, or a shape with random weights: llama-3-8b; by the device"
        ),
    ] = "",
    seconds: Annotated[float, typer.Option(min=1, help="how long a trial lasts")] = 10.0,
    history: Annotated[int, typer.Option(min=1, help="tokens that each stream has read before")] = 1024,
    most: Annotated[int, typer.Option(min=1, help="the most streams to try")] = 512,
    json_file: Json = None,
) -> None:
    """How many live streams hold at two frames a second, stepping together or each for itself, and how fast
    one stream goes without a clock; with all tokens in every layer and with mixture-of-depths (MoD).

    \b
    Examples:
    videollm bench streams --json benchmarks/streams.json
    videollm bench streams --device cuda --model llama-3-8b --history 2048
    """
    refuse_namesake()
    chosen = pick_device(device)
    name = model or ("llama-3-8b" if chosen.type == "cuda" else "pocket")
    from stream.live import most_streams, rates, ways

    rows, pace = [], []
    with Console(stderr=True).status("measuring") as status:
        for way, made in ways(name, chosen, history, seconds):
            pace += rates(way, made, history, seconds)
            for together in (True, False):
                status.update(f"{way}, {'together' if together else 'each for itself'}")
                rows.append(most_streams(way, made, together, history, seconds, most))
    table = Table("way", "steps", "streams", "p95 ms", "median ms", title=name)
    for row in rows:
        steps = "together" if row.together else "each for itself"
        table.add_row(row.way, steps, str(row.streams), f"{row.p95_ms:.0f}", f"{row.median_ms:.0f}")
    table.caption = "; ".join(
        f"{rate.way}, one stream, {rate.chunk_frames} a chunk"
        f"{', CUDA graphs' * rate.graphs}: {rate.frames_per_second:.1f} frames/s"
        for rate in pace
    )
    figures = {"model": name, "history": history, "seconds": seconds}
    _show(table, figures | {"rows": [asdict(r) for r in rows], "rates": [asdict(r) for r in pace]}, json_file)


@bench.command()
def serve(
    sessions: Annotated[int, typer.Option(min=1, help="clients that push and hear")] = 2,
    fps: Annotated[float, typer.Option(min=0.01, max=60, help="frames a second that each pushes")] = 2.0,
    seconds: Annotated[float, typer.Option(min=1, help="how long they do")] = 30.0,
    slow_readers: Annotated[int, typer.Option(min=0, help="further clients that take nothing")] = 0,
    model: Annotated[str, typer.Option(help="pocket, a folder or a hub id")] = "pocket",
    device: Device = "auto",
    fixed_step_ms: Annotated[
        float | None,
        typer.Option(
            min=0, help="no model: a step that takes so long, to see the server alone", show_default=False
        ),
    ] = None,
    json_file: Json = None,
) -> None:
    """A live server under load over real sockets, once it is warm: latency from a frame's sending to its
    acknowledgement and from its capture to its narration's text beside the server's own steps, the time to
    the first narration, how evenly sessions share, the server's memory over time.

    \b
    Examples:
    videollm bench serve --sessions 4 --seconds 60 --json benchmarks/serve.json
    videollm bench serve --sessions 300 --slow-readers 30 --fixed-step-ms 20
    """
    refuse_namesake()
    chosen = pick_device(device)
    from ui.load import Load, run

    load = Load(model, str(chosen), sessions, fps, seconds, slow_readers, fixed_step_ms)
    with Console(stderr=True).status("measuring"):
        result = run(load)
    what = model if fixed_step_ms is None else f"no model, a step of {fixed_step_ms:g} ms"
    title = f"{what}: {sessions} sessions at {fps:g} frames/s, {slow_readers} slow readers"
    table = Table("", "value", title=title)
    memory = [mib for _, mib in result.resident_mib]
    for name, value in (
        ("acknowledged, ms: median, 95 %, 99 %", (result.ack_p50_ms, result.ack_p95_ms, result.ack_p99_ms)),
        ("captured to narrated, ms: median, 95 %", (result.narration_p50_ms, result.narration_p95_ms)),
        ("a step of the server, ms: mean, 95 %", (result.step.mean_ms, result.step.p95_ms)),
        (
            "frames read, dropped, held back",
            (result.frames_read, result.frames_dropped, result.frames_held_back),
        ),
        ("frames read by a session: fewest, most", (result.reads_fewest, result.reads_most)),
        ("memory, MiB: first, most, last", (memory[0], max(memory), memory[-1])),
    ):
        table.add_row(name, ", ".join(f"{part:.0f}" for part in value))
    firsts = f"{result.first_narration_p50_s:.2f}, {result.first_narration_worst_s:.2f}"
    table.add_row("first narration, s: median, worst", firsts)
    table.add_row("the frame it tells of came at, s", f"{result.first_narrated_frame_p50_s:.2f}")
    table.add_row("fairness (Jain's index)", f"{result.fairness:.3f}")
    table.add_row("narrations, failed sessions", f"{result.narrations}, {result.failed_sessions}")
    _show(table, {"load": asdict(load), "result": asdict(result)}, json_file)


def circumstances() -> dict[str, Any]:
    """When and on what it was measured."""
    import torch

    return {
        "date": date.today().isoformat(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _show(table: Table, results: dict[str, Any], json_file: Path | None) -> None:
    machine, console = circumstances(), Console()
    table.columns[0].no_wrap = True
    console.print(", ".join(f"{name} {value}" for name, value in machine.items()))
    console.print(table)
    if json_file is not None:
        json_file.write_text(json.dumps({"machine": machine} | results, indent=1) + "\n")
