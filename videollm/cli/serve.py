"""`videollm serve`: robots, apps and browsers push frames, and hear what happens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from videollm.cli import options
from videollm.cli.errors import CommandError
from videollm.cli.loading import load_engine


def serve(
    host: Annotated[str, typer.Option("--host", help="Address to bind to.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535)] = 7860,
    token: Annotated[
        str | None,
        typer.Option(
            "--token",
            envvar="VIDEOLLM_TOKEN",
            help="What clients must show; needed beyond this machine.",
            show_default=False,
        ),
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option("--certificate", help="TLS certificate, PEM.", show_default=False)
    ] = None,
    key: Annotated[Path | None, typer.Option("--key", help="Its key, PEM.", show_default=False)] = None,
    origin: Annotated[
        list[str] | None,
        typer.Option("--origin", help="A page's origin that may connect, too.", show_default=False),
    ] = None,
    folder: Annotated[
        list[Path] | None,
        typer.Option("--folder", help="A folder whose clips requests may name.", show_default=False),
    ] = None,
    source: Annotated[
        list[str] | None,
        typer.Option(
            "--source",
            metavar="NAME=SOURCE",
            help="What the server itself can watch for those who say the name: a video file, camera:0, "
            "rtsp://..., or a folder of pictures.",
            show_default=False,
        ),
    ] = None,
    max_sessions: Annotated[int, typer.Option("--max-sessions", min=1)] = 8,
    grace: Annotated[
        float,
        typer.Option("--grace", min=0, help="Seconds that a session waits for a client that was cut off."),
    ] = 30.0,
    journal: Annotated[
        Path | None,
        typer.Option(
            "--journal",
            metavar="FOLDER",
            help="Keep what each session says, and frames beside it, in a journal of its own here: what has "
            "left the context is answered from it, and `videollm ask --journal` reads it.",
            show_default=False,
        ),
    ] = None,
    journal_size: options.JournalSize = "2GB",  # type: ignore[assignment]  # the parser's input
    journal_total: Annotated[
        int,
        typer.Option(
            "--journal-total",
            parser=options.parse_size,
            metavar="SIZE",
            help="The most that all journals may take; those of sessions that ended longest ago are removed.",
        ),
    ] = "20GB",  # type: ignore[assignment]
    threshold: options.Threshold = None,
    model: options.Model = "pocket",
    device: options.Device = "auto",
    budget: options.Budget = None,
) -> None:
    """Serve a page for the browser, live sessions over a WebSocket, and an API like OpenAI's.

    \b
    Examples:
    videollm serve
    VIDEOLLM_TOKEN=... videollm serve --host 0.0.0.0 --certificate cert.pem --key key.pem
    videollm serve --folder clips/ --max-sessions 2
    videollm serve --source door=rtsp://192.168.0.20/live --source hall=camera:0 --source demo=clips/demo.mp4
    videollm serve --journal journals/ --journal-size 500MB --journal-total 10GB
    """
    from ui.server_sources import parse_sources
    from ui.settings import Settings, SettingsError, listen

    try:
        settings = Settings(
            host=host,
            port=port,
            token=token or None,
            max_sessions=max_sessions,
            grace_seconds=grace,
            threshold=threshold,
            origins=tuple(origin or ()),
            folders=tuple(folder or ()),
            sources=parse_sources(source or ()),
            journal=journal,
            journal_size=journal_size,
            journal_total=journal_total,
            certificate=certificate,
            key=key,
        )
        settings.check()
        with listen(settings) as taken:
            engine = load_engine(model, device, budget, max_sessions)
            from ui.app import create_app
            from ui.serving import Server

            server = Server(create_app(engine, model, settings), settings)
            address = settings.address(taken.getsockname()[1])
            page = address.replace("ws", "http", 1)
            message = f"{model}: the page on {page}, the WebSocket on {address}/v1/stream (stop: Ctrl-C)"
            typer.echo(f"serving {message}", err=True)
            server.run(sockets=[taken])
    except SettingsError as error:
        raise CommandError(str(error)) from error
