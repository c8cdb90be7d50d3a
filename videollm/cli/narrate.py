"""`videollm narrate`: what happens, when it happens."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from stream.export import format_of, writer_for
from stream.export.times import format_time
from videollm.cli import options
from videollm.cli.errors import check_whole
from videollm.cli.loading import MAX_SIDE, load_session
from videollm.cli.play import play
from videollm.cli.push import push

if TYPE_CHECKING:
    from stream.journal import Journal

SUBTITLES = ("srt", "vtt")


def narrate(
    source: options.Source,
    format: Annotated[
        Literal["text", "jsonl", "srt", "vtt", "md"] | None,
        typer.Option("--format", help="By default what --out's name says, else text.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Write to this file instead of standard output.", show_default=False),
    ] = None,
    fps: options.Fps = 2.0,
    threshold: options.Threshold = None,
    realtime: Annotated[
        bool, typer.Option("--realtime", help="Play a file no faster than its own speed.")
    ] = False,
    journal: Annotated[
        Path | None,
        typer.Option(
            "--journal",
            metavar="FILE",
            help="Keep what is said, and frames beside it, for `videollm ask --journal`. One that is there "
            "is continued, and its clock goes on.",
            show_default=False,
        ),
    ] = None,
    journal_size: options.JournalSize = "2GB",  # type: ignore[assignment]  # the parser's input
    model: options.Model = "pocket",
    device: options.Device = "auto",
    budget: options.Budget = None,
    server: Annotated[
        str | None,
        typer.Option(
            "--server", help="Let this server watch: ws://host:port (videollm serve).", show_default=False
        ),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option("--token", envvar="VIDEOLLM_TOKEN", help="The server's token.", show_default=False),
    ] = None,
) -> None:
    """Say what happens in a stream, when it happens.

    \b
    Examples:
    videollm narrate clip.mp4
    videollm narrate camera:0 --format jsonl
    videollm narrate rtsp://192.168.0.20/live --budget 20% --out night.jsonl
    videollm narrate clip.mp4 --out clip.srt
    videollm narrate camera:0 --journal kitchen.db --journal-size 500MB
    ffmpeg -i clip.mkv -f mpegts - | videollm narrate -
    videollm narrate camera:0 --server ws://192.168.0.5:7860
    """
    chosen = format or _format_of(out)
    if server and (journal or budget):
        raise typer.BadParameter(
            "a server keeps neither a journal nor a budget; leave it out", param_hint="--server"
        )
    from stream.feed import Feed
    from stream.sources import open_source
    from videollm.cli.status import Status

    with ExitStack() as stack:
        opened = stack.enter_context(open_source(source, fps, max_side=MAX_SIDE))
        if out and out.exists() and Path(source).exists() and out.samefile(source):
            raise typer.BadParameter(f"{out} is the clip itself", param_hint="--out")
        kept = stack.enter_context(_journal(journal, journal_size, source)) if journal else None
        if kept and kept.start and chosen in SUBTITLES:
            raise typer.BadParameter(
                f"{journal} goes on from {format_time(kept.start)}, and subtitles need the clip's own times; "
                "begin a new journal, or choose another --format",
                param_hint="--journal",
            )
        session = load_session(model, device, threshold, budget, kept) if server is None else None
        feed = stack.enter_context(Feed(opened, realtime=realtime))
        status = stack.enter_context(Status(feed))
        writer = stack.enter_context(writer_for(chosen, out or sys.stdout))
        if session is not None:
            for event in play(feed, session, status.seen):
                writer.write(event)
        elif server is not None:
            push(feed, server, token, threshold, status.seen, writer.write)
        check_whole(opened)


def _journal(path: Path, size: int, source: str) -> Journal:
    from stream.journal import Journal

    try:
        return Journal(path, size, source=source)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--journal-size") from error


def _format_of(out: Path | None) -> str:
    try:
        return format_of(out) if out else "text"
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--out") from error
