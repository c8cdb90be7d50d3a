"""`videollm summarize`: a page for every clip."""

from __future__ import annotations

import errno
import hashlib
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from stream.frames import Frame
from videollm.cli import options
from videollm.cli.errors import CommandError, check_whole, complain, describe
from videollm.cli.loading import MAX_SIDE, absolute, load_session
from videollm.cli.play import play
from videollm.cli.ray_workers import on_ray

if TYPE_CHECKING:
    from stream.session import Session
    from videollm.cli.summary import Settings

LONGEST_STEM = (
    50  # characters; with a digest, an ending and four bytes each still a name on every file system
)


def summarize(
    clips: Annotated[
        list[Path], typer.Argument(metavar="CLIP", help="Clips, or folders of clips.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where to write.", show_default=False)],
    resume: Annotated[bool, typer.Option("--resume", help="Skip clips that are finished.")] = False,
    fps: options.Fps = 2.0,
    threshold: options.Threshold = None,
    model: options.Model = "pocket",
    device: options.Device = "auto",
    budget: options.Budget = None,
    ray: options.Ray = None,
) -> None:
    """Write a page for every clip: Markdown and JSON, with a contact sheet of what was said.

    \b
    Examples:
    videollm summarize clip.mp4 --out pages
    videollm summarize holidays/ party.mov --out pages
    videollm summarize holidays/ --out pages --resume
    """
    if out.exists() and not out.is_dir():
        raise typer.BadParameter(f"{out} is a file; name a folder", param_hint="--out")
    from videollm.cli.summary import Settings, is_finished

    _check_writable(out)
    found, failed = _find(clips)
    names = clip_names(found, out)
    settings = Settings(model, fps, threshold, budget)
    todo = {
        clip: name for clip, name in names.items() if not (resume and is_finished(out, name, clip, settings))
    }
    if resume and names:
        print(f"{len(names) - len(todo)} of {len(names)} clips are finished already")
    if todo:
        failed |= _summarize_all(todo, out, settings, device, ray)
    for clip, reason in failed.items():
        complain(f"{clip}: {reason}")
    if failed:
        raise typer.Exit(1)


def _check_writable(out: Path) -> None:
    """OSError now instead of after a clip was watched."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=out):
        pass


def _find(given: Iterable[Path]) -> tuple[list[Path], dict[Path, str]]:
    """The clips named or lying in the folders named, each once; and the folders that hold none."""
    from stream.sources.opening import CLIP_SUFFIXES

    found: dict[Path, None] = {}
    empty: dict[Path, str] = {}
    for path in given:
        inside = [path]
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in CLIP_SUFFIXES)
        if not inside:
            empty[path] = "no clips in this folder"
        found |= dict.fromkeys(clip.resolve() for clip in inside)
    return list(found), empty


def clip_names(clips: Sequence[Path], out: Path) -> dict[Path, str]:
    """A name in `out` for each clip: its stem, with a digest of its path where another clip has that stem."""
    from videollm.cli.summary import read_summary

    stems = Counter(clip.stem[:LONGEST_STEM] for clip in clips)
    names = {}
    for clip in clips:
        stem = clip.stem[:LONGEST_STEM]
        digest = hashlib.sha1(os.fsencode(clip), usedforsecurity=False).hexdigest()[:8]
        longer = f"{stem}-{digest}"
        there = read_summary(out, stem)
        if there is None:
            free = stems[stem] == 1 and read_summary(out, longer) is None
        else:
            free = there.clip.path == str(clip)
        names[clip] = stem if free else longer
    return names


class Summarizer:
    """Writes the pages of clips, one after the other, here or on a worker. `advance` hears of each share of a
    clip that is watched."""

    def __init__(
        self,
        model: str,
        device: str,
        out: Path,
        settings: Settings,
        advance: Callable[[float], object] | None = None,
    ) -> None:
        self._session = load_session(model, device, settings.threshold, settings.budget)
        self._out = out
        self._settings = settings
        self._advance = advance or (lambda share: None)

    def __call__(self, named: tuple[Path, str]) -> tuple[Path, str | None]:
        """A clip and its name in `out`, to the clip and what is wrong with it. A full disk is raised."""
        clip, name = named
        try:
            _summarize(clip, self._out, name, self._session, self._settings, self._advance)
        except Exception as error:  # whatever is wrong with one clip, the others must not suffer
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise
            return clip, describe(error)
        return clip, None


def _summarize_all(
    names: dict[Path, str], out: Path, settings: Settings, device: str, ray: str | None
) -> dict[Path, str]:
    """Summarize every clip; those that failed, with the reason. Only a full disk ends it: CommandError."""
    failed: dict[Path, str] = {}
    progress = _progress()
    task = progress.add_task("", total=len(names))
    todo = list(names.items())
    if ray is None:
        advance = partial(progress.advance, task)
        results: Iterable[tuple[Path, str | None]] = map(
            Summarizer(settings.model, device, out, settings, advance), todo
        )
    else:
        model = absolute(settings.model)
        results = on_ray(ray, partial(Summarizer, model, device, out.resolve(), settings), todo)
    done = 0
    try:
        with progress:
            for done, (clip, problem) in enumerate(results, 1):
                progress.update(task, completed=done, description=f"{done} of {len(names)} clips")
                if problem is None:
                    print(out / f"{names[clip]}.md", flush=True)
                else:
                    failed[clip] = problem
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        saved = f"{done - len(failed)} of {len(names)} clips are saved in {out}"
        raise CommandError(f"the disk is full; {saved}; make room and go on with --resume") from error
    return failed


def _progress() -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
    )


def _summarize(
    clip: Path,
    out: Path,
    name: str,
    session: Session,
    settings: Settings,
    advance: Callable[[float], object],
) -> None:
    from stream.feed import Feed
    from stream.sources import open_source
    from videollm.cli.summary import Clip, Recorder, Summary, write_summary

    session.reset()
    with open_source(str(clip), settings.fps, max_side=MAX_SIDE) as source, Feed(source) as feed:
        duration = source.duration
        recorder = Recorder()

        def seen(frame: Frame) -> None:
            if duration:
                advance((frame.time - recorder.time) / duration)
            recorder.seen(frame)

        for event in play(feed, session, seen):
            recorder.said(event)
    summary = Summary(Clip.of(clip), settings, duration or recorder.time, recorder.events)
    write_summary(out, name, summary, recorder.contact_sheet())
    check_whole(source)
