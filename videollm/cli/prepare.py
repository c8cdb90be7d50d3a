"""`videollm prepare`: a data set's videos as features, to be trained on."""

from __future__ import annotations

import errno
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from train.data.readers import READERS, read_annotation
from videollm.cli import options
from videollm.cli.errors import CommandError, complain
from videollm.cli.loading import MAX_SIDE, absolute, pick_device, quieten_transformers, refuse_namesake
from videollm.cli.ray_workers import on_ray

if TYPE_CHECKING:
    from train.data.annotations import Skipped
    from train.data.encoding import Made, ShardMaker
    from train.data.preparation import Plan


def prepare(
    dataset: Annotated[
        str,
        typer.Argument(
            metavar="DATASET", help=f"The annotation's kind: {', '.join(READERS)}.", show_default=False
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to fill.", show_default=False)],
    annotation: Annotated[
        Path, typer.Option("--annotation", metavar="FILE", help="The data set's own.", show_default=False)
    ],
    videos: Annotated[
        Path,
        typer.Option(
            "--videos", metavar="FOLDER", help="Where its clips lie, at any depth.", show_default=False
        ),
    ],
    fps: options.Fps = 2.0,
    model: options.Model = "pocket",
    device: options.Device = "auto",
    ray: options.Ray = None,
) -> None:
    """Encode a data set's videos once, for trainings and evaluations that read features of frames.

    Run again, it goes on where it was stopped, and encodes what is new or changed. Of the model only the
    vision tower is used: what is prepared suits every model with the same one.

    \b
    Examples:
    videollm prepare ego4d-narrations ego4d-2fps --annotation narration.json --videos ego4d/full_scale
    videollm prepare coin coin-2fps --annotation COIN.json --videos coin/videos --ray auto
    """
    if not videos.is_dir():
        raise CommandError(f"there is no folder {videos}; --videos names the one with the clips")
    refuse_namesake()
    quieten_transformers()
    from train.data.annotations import Skipped
    from train.data.encoding import bytes_of_frame
    from train.data.preparation import MISSING, VideoFiles, carry_out, plan
    from train.data.shards import Encoding, Shards, ShardWriter
    from videollm.checkpoints import load_vision_tower

    skipped = Skipped()
    try:
        annotated = read_annotation(dataset, annotation, skipped)
    except ValueError as error:
        raise CommandError(str(error)) from error
    pick_device(device)  # before anything else is done, where there is none of that name
    with Console(stderr=True).status("loading the vision tower"):
        tower, vision = load_vision_tower(model)
    with ShardWriter(out.resolve(), Encoding(vision, tower.size, fps), annotated) as writer:
        for name in writer.lost:
            complain(f"{out / name} was missing or cut short; its videos are encoded again")
        with Console(stderr=True).status("looking for the videos"):
            todo = plan(annotated, VideoFiles(videos.resolve()), writer, fps * bytes_of_frame(tower))

        def failed(video: str, reason: str) -> None:
            complain(f"{video}: {reason}")
            skipped.add("video without a file" if reason == MISSING else "video that can't be read", video)

        with _progress(todo.seconds * fps) as told:
            if ray is None:
                made: Iterable[Made] = map(_maker(model, device, fps, told), todo.jobs)
            else:
                made = _telling(on_ray(ray, partial(_maker, absolute(model), device, fps), todo.jobs), told)
            began = time.monotonic()
            try:
                frames = carry_out(todo, writer, made, failed)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                kept = f"{len(writer.index.videos)} videos are kept in {out}"
                raise CommandError(f"the disk is full; {kept}; make room and run it again") from error
        rate = frames / (time.monotonic() - began)
    prepared = Shards(out)
    if not prepared.annotation:
        raise CommandError(f"not one of {len(annotated)} videos is prepared; check --videos {videos}")
    _show(todo, {video.video for video in prepared.annotation}, [skipped, prepared.skipped])
    hours = sum(prepared.duration(video) for video in prepared.videos) / 3600
    print(f"{out}: {len(prepared.videos)} videos, {hours:.2f} hours")
    if frames:
        print(f"{frames} frames encoded, {rate:.1f} a second, {rate / fps:.1f} times as fast as they play")


def _maker(model: str, device: str, fps: float, told: Callable[[int], object] | None = None) -> ShardMaker:
    from train.data.encoding import ShardMaker

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of PyTorch's export, none of the user's
        return ShardMaker(model, pick_device(device), fps, MAX_SIDE, told)


def _telling(made: Iterable[Made], told: Callable[[int], object]) -> Iterator[Made]:
    for result in made:
        if result.shard is not None:
            told(sum(entry.frames for entry in result.shard.videos.values()))
        yield result


def _show(todo: Plan, prepared: set[str], skipped: list[Skipped]) -> None:
    """The table of what was kept and what was not."""
    copies = sum(len(prepared.intersection(names)) for names in todo.copies.values())
    table = Table("", "count", "first")
    for kind, count in (
        ("videos encoded", len(prepared) - copies - len(todo.kept)),
        ("videos prepared before", len(todo.kept)),
        ("videos with the content of another", copies),
    ):
        table.add_row(kind, str(count), "")
    for part in skipped:
        for reason, count in part.counts.items():
            table.add_row(f"skipped: {reason}", str(count), escape(part.first[reason]))
    Console().print(table)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.1f} frames/s")


@contextmanager
def _progress(frames: float) -> Iterator[Callable[[int], object]]:
    """A bar of so many frames, and what is to be told of every one that is encoded."""
    console = Console(stderr=True)
    columns = (BarColumn(), TaskProgressColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("", total=frames)
        yield lambda encoded: progress.advance(task, encoded)
