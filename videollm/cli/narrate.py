"""`videollm narrate`: what happens, when it happens."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from stream.export import format_of, writer_for
from videollm.cli import options
from videollm.cli.errors import check_whole
from videollm.cli.loading import MAX_SIDE, load_session
from videollm.cli.play import play
from videollm.cli.push import push


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
    model: options.Model = "pocket",
    device: options.Device = "auto",
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
    videollm narrate rtsp://192.168.0.20/live --out night.jsonl
    videollm narrate clip.mp4 --out clip.srt
    ffmpeg -i clip.mkv -f mpegts - | videollm narrate -
    videollm narrate camera:0 --server ws://192.168.0.5:7860
    """
    chosen = format or _format_of(out)
    from stream.feed import Feed
    from stream.sources import open_source
    from videollm.cli.status import Status

    with open_source(source, fps, max_side=MAX_SIDE) as opened:
        if out and out.exists() and Path(source).exists() and out.samefile(source):
            raise typer.BadParameter(f"{out} is the clip itself", param_hint="--out")
        session = load_session(model, device, threshold) if server is None else None
        with (
            Feed(opened, realtime=realtime) as feed,
            Status(feed) as status,
            writer_for(chosen, out or sys.stdout) as writer,
        ):
            if session is not None:
                for event in play(feed, session, status.seen):
                    writer.write(event)
            elif server is not None:
                push(feed, server, token, threshold, status.seen, writer.write)
        check_whole(opened)


def _format_of(out: Path | None) -> str:
    try:
        return format_of(out) if out else "text"
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--out") from error
