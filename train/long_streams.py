"""Streams of hours: `python -m train.long_streams quality|soak --data ../shared/data`.

`quality`: composed clips never trained on, strung together; narration in each ten minutes, with a budget and
without. `soak`: a clip played over and over as fast as it goes; memory, latency of a frame and drift of the
clock for each hour of the stream.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import typer
from rich.console import Console
from rich.table import Table

from stream.engine import Engine
from stream.frames import Event, Frame
from stream.session import Session
from stream.sources import open_source
from train.benchmark import machine, write_clip
from train.compose import FPS, Happening, Sight, compose, happenings_of
from train.media import Media, load_media
from train.options import Data
from train.results import Results
from train.scoring import NarrationScore
from train.vocabulary import load_vocabulary
from videollm.cli.loading import load_session

# Neither the training clips' seeds nor those of other benchmarks.
CLIP_SEED = 3_000_000
WITHOUT = "without"
PAIRED = 600  # frames that the young stream sees
CLIP_RATE = 10  # frames a second of the clip that is played over and over

Model = Annotated[str, typer.Option(help="the model")]
Budget = Annotated[str, typer.Option(help="share of the context, or tokens")]

app = typer.Typer(no_args_is_help=True, help=__doc__)
console = Console()


def strung(media: Media, first_seed: int) -> Iterator[tuple[float, np.ndarray, tuple[Happening, ...]]]:
    """Composed clips one behind the other, without end: when each begins, its frames, and what is to be said
    in it at the whole stream's times."""
    seed, begin = first_seed, 0.0
    before: tuple[Sight, ...] = ()
    while True:
        clip = compose(media, seed)
        # Between clips there is a cut: what was in view before counts.
        joint = happenings_of((before, clip.sights[0]), {1})
        happenings = [replace(happening, time=begin) for happening in joint if happening.time > 0]
        happenings += [replace(each, time=begin + each.time) for each in clip.happenings if each.time > 0]
        yield begin, clip.frames, tuple(happenings)
        seed, begin, before = seed + 1, begin + len(clip.frames) / FPS, clip.sights[-1]


def narration(session: Session, media: Media, minutes: float, block: float) -> Iterator[dict[str, Any]]:
    """The score of each `block` minutes of a stream of so many; a clip counts where it begins."""
    vocabulary = load_vocabulary()
    session.reset()
    score, number, begun = NarrationScore(), 0, time.perf_counter()
    for begin, frames, happenings in strung(media, CLIP_SEED):
        if begin >= 60 * block * (number + 1):
            yield _row(number, block, score, session, begun)
            score, number = NarrationScore(), number + 1
        if begin >= 60 * minutes:
            return
        said: list[Event] = []
        for index, pixels in enumerate(frames):
            said += session.step(Frame(begin + index / FPS, pixels))
        score.add(happenings, said, vocabulary)


def _row(number: int, block: float, score: NarrationScore, session: Session, begun: float) -> dict[str, Any]:
    return {
        "minutes": f"{number * block:g} to {(number + 1) * block:g}",
        **score.row(),
        "cache_mib": session.cache_bytes / 2**20,
        "seconds": time.perf_counter() - begun,
    }


@app.command()
def quality(
    data: Data,
    out: Annotated[Path, typer.Option(help="where the figures go")] = Path("benchmarks/long-streams.json"),
    minutes: Annotated[float, typer.Option(help="of the stream")] = 120.0,
    block: Annotated[float, typer.Option(help="minutes that are scored together")] = 10.0,
    budget: Budget = "20%",
    model: Model = "pocket",
) -> None:
    """Narration at the end of a long stream beside its beginning; a way that is done is not run again."""
    blocks = int(minutes / block)
    if blocks < 1:
        raise typer.BadParameter("the stream is shorter than a block", param_hint="--minutes")
    results = _results(out, {"minutes": minutes, "block": block, "model": model, "seed": CLIP_SEED})
    media = load_media(data, "heldout")
    shown = Table("way", "minutes", "events", "named", "narrated", "TimeDiff", "false an event", "cache MiB")
    for way in (WITHOUT, f"budget {budget}"):
        if f"{way}, {blocks - 1}" not in results.rows:
            session = load_session(model, "auto", budget=None if way == WITHOUT else budget)
            for number, row in enumerate(narration(session, media, blocks * block, block)):
                results.add(f"{way}, {number}", row)
                console.print(f"{way}, minutes {row['minutes']}: {row['named']:.1%} named")
        for number in range(blocks):
            row = results.rows[f"{way}, {number}"]
            shown.add_row(
                way,
                row["minutes"],
                f"{row['events']}",
                f"{row['named']:.1%}",
                f"{row['narrated']:.1%}",
                f"{row['time_diff']:.2f} s",
                f"{row['false_per_event']:.2f}",
                f"{row['cache_mib']:.1f}",
            )
    console.print(shown)


def played(
    session: Session, young: Session, clip: Path, hours: float, block: float, first: Path
) -> Iterator[dict[str, Any]]:
    """What each `block` hours of stream took, the clip played over and over, frame by frame.

    Before a block ends the stream as it was after the first, which is written to `first`, sees the same
    frames in turn with it, as `young`: what disturbs one disturbs both.
    """
    process = psutil.Process()
    latencies: list[float] = []
    beside: list[float] = []  # of the young one
    said = frames = number = 0
    begun, offset = time.perf_counter(), 0.0
    while True:
        begin, length = frames, 0.0
        with open_source(str(clip), FPS) as source:
            for frame in source:
                left = round(3600 * block * FPS * (number + 1)) - frames
                if number and left <= PAIRED:
                    if not beside:
                        young.restore(first)
                    _timed(young, Frame(young.time + 1 / FPS, frame.pixels), beside)
                said += _timed(session, Frame(offset + frame.time, frame.pixels), latencies)
                frames += 1
                if left == 1:
                    number += 1
                    yield {
                        "hours": number * block,
                        "rss_mib": process.memory_info().rss / 2**20,
                        "cache_mib": session.engine.cache.nbytes / 2**20,
                        "median_ms": 1e3 * statistics.median(latencies),
                        "p95_ms": 1e3 * statistics.quantiles(latencies, n=20)[-1],
                        "of_young": _of_young(latencies, beside),
                        "sayings": said,
                        "drift_seconds": session.time - (frames - 1) / FPS,
                        "seconds": time.perf_counter() - begun,
                    }
                    if number == 1:
                        session.snapshot(first)
                    latencies, beside, said, begun = [], [], 0, time.perf_counter()
                    if number >= round(hours / block):
                        return
                length = frame.time + 1 / FPS
        if frames == begin:
            raise ValueError(f"{clip} has no frames")
        offset += length


def _timed(session: Session, frame: Frame, latencies: list[float]) -> int:
    """How much is said at a frame; its seconds go to `latencies`."""
    at = time.perf_counter()
    said = len(session.step(frame))
    latencies.append(time.perf_counter() - at)
    return said


def _of_young(latencies: list[float], beside: list[float]) -> float | None:
    """The median of a frame as a share of the young stream's, of the frames that both saw in turn."""
    if not beside:
        return None
    return statistics.median(latencies[-len(beside) :]) / statistics.median(beside)


@app.command()
def soak(
    data: Data,
    out: Annotated[Path, typer.Option(help="where the figures go")] = Path("benchmarks/soak.json"),
    hours: Annotated[float, typer.Option(help="of the stream")] = 8.0,
    block: Annotated[float, typer.Option(help="hours of a row")] = 1.0,
    clip_minutes: Annotated[float, typer.Option(help="of what is played over and over")] = 10.0,
    budget: Budget = "20%",
    model: Model = "pocket",
) -> None:
    """Memory, latency and clock by hour of one endless stream. Rows are kept as they come; a stopped run
    begins anew, because what is measured is a process that doesn't stop."""
    if round(hours / block) < 1:
        raise typer.BadParameter("the stream is shorter than a block", param_hint="--hours")
    results = _results(
        out, {"hours": hours, "block": block, "clip_minutes": clip_minutes, "budget": budget, "model": model}
    )
    shown = Table(
        "hours",
        "resident MiB",
        "cache MiB",
        "median ms",
        "95 % ms",
        "of hour 1's, in turn",
        "sayings",
        "drift s",
        "x real time",
    )
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.mp4"
        media, parts = load_media(data, "heldout"), []
        for begin, frames, _ in strung(media, CLIP_SEED):
            if begin >= 60 * clip_minutes:
                break
            parts.append(frames)
        write_clip(clip, np.concatenate(parts), CLIP_RATE)
        del media, parts
        session = load_session(model, "auto", budget=budget)
        young = Session(session.model, engine=Engine(session.model, budget=session.engine.cache.budgets))
        for row in played(session, young, clip, hours, block, Path(folder) / "first"):
            results.add(f"{row['hours']:g}", row)
            console.print(f"{row['hours']:g} hours, {row['rss_mib']:.0f} MiB resident")
            shown.add_row(
                f"{row['hours']:g}",
                f"{row['rss_mib']:.0f}",
                f"{row['cache_mib']:.1f}",
                f"{row['median_ms']:.1f}",
                f"{row['p95_ms']:.1f}",
                "" if row["of_young"] is None else f"{row['of_young']:.2f}",
                f"{row['sayings']}",
                f"{row['drift_seconds']:+.3f}",
                f"{3600 * block / row['seconds']:.1f}",
            )
    console.print(shown)


def _results(out: Path, settings: dict[str, Any]) -> Results:
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        return Results(out, settings, machine())
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--out") from error


if __name__ == "__main__":
    app()
