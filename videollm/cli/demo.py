"""`videollm demo`: the sample clip, narrated, asked about and exported."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from stream.export import writer_for
from stream.frames import Frame
from videollm.cli.loading import MAX_SIDE, load_session
from videollm.cli.play import play

FPS = 2.0
QUESTION = "What came first?"
EXPORTS = ("jsonl", "srt", "vtt")


def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the results go.")] = Path("out"),
    realtime: Annotated[
        bool, typer.Option("--realtime", help="Play the clip no faster than its own speed.")
    ] = False,
) -> None:
    """Narrate the sample clip, ask one question, and leave every export in a folder.

    \b
    Examples:
    videollm demo
    videollm demo --out /tmp/demo --realtime
    """
    from stream.export.burn import burn
    from stream.feed import Feed
    from stream.sources import open_source
    from videollm.checkpoints import DEFAULT_MODEL, assets_folder
    from videollm.cli.status import Status
    from videollm.cli.summary import Clip, Recorder, Settings, Summary, write_summary

    clip = assets_folder() / "sample.mp4"
    recorder = Recorder()
    with ExitStack() as stack:
        source = stack.enter_context(open_source(str(clip), FPS, max_side=MAX_SIDE))
        session = load_session(DEFAULT_MODEL, "auto")
        feed = stack.enter_context(Feed(source, realtime=realtime))
        status = stack.enter_context(Status(feed))
        files = [(format, out / f"narration.{format}") for format in EXPORTS]
        writers = [
            stack.enter_context(writer_for(format, target))
            for format, target in [("text", sys.stdout), *files]
        ]

        def seen(frame: Frame) -> None:
            status.seen(frame)
            recorder.seen(frame)

        for event in play(feed, session, seen, [QUESTION]):
            recorder.said(event)
            for writer in writers:
                writer.write(event)
        duration = source.duration or recorder.time
    print(status)
    settings = Settings(DEFAULT_MODEL, FPS, session.threshold)
    summary = Summary(Clip.of(clip), settings, duration, recorder.events)
    write_summary(out, "summary", summary, recorder.contact_sheet())
    with Console(stderr=True).status("burning the narration into the clip"):
        burn(clip, recorder.events, out / "narrated.mp4")
    print(
        f"\nIn {out}: {', '.join(sorted(file.name for file in out.iterdir()))}\n\n"
        "Worth trying next:\n"
        "  videollm narrate camera:0\n"
        f'  videollm ask {clip} "What is in view?" --at 00:05\n'
        f"  videollm summarize {clip.parent} --out pages"
    )
