"""`videollm ask`: questions about a clip, at times of it, or about what a journal holds."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
import typer

from stream.export import writer_for
from stream.export.times import format_time, parse_time
from stream.frames import Event
from videollm.cli import options
from videollm.cli.errors import check_whole
from videollm.cli.loading import MAX_SIDE, load_session
from videollm.cli.play import play

if TYPE_CHECKING:
    from stream.session import Session


def _time(text: str) -> float:
    try:
        return parse_time(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def ask(
    source: Annotated[
        str,
        typer.Argument(
            metavar="[SOURCE]", help=f"{options.SOURCES} None with --journal.", show_default=False
        ),
    ],
    questions: Annotated[list[str] | None, typer.Argument(metavar="QUESTION...", show_default=False)] = None,
    at: Annotated[
        list[float] | None,
        typer.Option(
            "--at",
            parser=_time,
            metavar="mm:ss",
            help="When to ask; the first --at belongs to the first question, and so on. "
            "Questions without one are asked at the end.",
            show_default=False,
        ),
    ] = None,
    journal: Annotated[
        Path | None,
        typer.Option(
            "--journal",
            metavar="FILE",
            help="Ask what this journal holds, of a stream that has ended or still runs.",
            show_default=False,
        ),
    ] = None,
    format: Annotated[Literal["text", "jsonl"], typer.Option("--format")] = "text",
    fps: options.Fps = 2.0,
    model: options.Model = "pocket",
    device: options.Device = "auto",
    budget: options.Budget = None,
) -> None:
    """Ask about a clip, at its end or at given times, or about a journal that narrate keeps.

    \b
    Examples:
    videollm ask clip.mp4 "What came first?"
    videollm ask clip.mp4 "What is in view?" --at 00:05 "What left?" --at 00:12
    videollm ask camera:0 "What is in view?" --at 10 --format jsonl
    videollm ask --journal kitchen.db "Where was the cup?" "What was in view ten minutes ago?"
    """
    times, questions = at or [], questions or []
    if journal:
        questions = [source, *questions]
    elif not questions:
        raise typer.BadParameter("ask something behind the SOURCE", param_hint="QUESTION")
    if len(times) > len(questions):
        message = f"{len(times)} times for {len(questions)} question(s); give each question one --at at most"
        raise typer.BadParameter(message, param_hint="--at")
    if not all(question.strip() for question in questions):
        raise typer.BadParameter("a question is empty", param_hint="QUESTION")
    if journal:
        return _ask_journal(journal, questions, times, format, model, device, budget)
    from stream.feed import Feed
    from stream.sources import open_source
    from videollm.cli.status import Status

    with open_source(source, fps, max_side=MAX_SIDE) as opened:
        if opened.live and len(times) < len(questions):
            raise typer.BadParameter(
                "a live stream has no end; give every question an --at", param_hint="--at"
            )
        session = load_session(model, device, budget=budget)
        _ask(session, questions[: len(times)], times)
        unanswered = len(questions)
        with Feed(opened) as feed, Status(feed) as status, writer_for(format, sys.stdout) as writer:
            for event in play(feed, session, status.seen, questions[len(times) :]):
                end = max(status.time + 1 / fps, opened.duration or 0.0)
                if event.kind == "question" and event.time > end:
                    writer.write(_late(event, status.time))
                if event.kind != "narration":
                    writer.write(
                        msgspec.structs.replace(event, time=status.time) if event.time > end else event
                    )
                unanswered -= event.kind == "answer"
                if not unanswered:
                    break
        check_whole(opened)


def _ask_journal(
    path: Path,
    questions: Sequence[str],
    times: Sequence[float],
    format: str,
    model: str,
    device: str,
    budget: str | None,
) -> None:
    from stream.journal import JournalReader

    with JournalReader(path) as journal, writer_for(format, sys.stdout) as writer:
        session = load_session(model, device, budget=budget, journal=journal)
        _ask(session, questions, times)
        for event in session.finish():
            writer.write(event)


def _ask(session: Session, questions: Sequence[str], times: Sequence[float]) -> None:
    """Questions at their times, and those without one now."""
    for question, time in zip_longest(questions, times):
        try:
            session.ask(question, time)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="QUESTION") from error


def _late(question: Event, end: float) -> Event:
    text = f"asked for {format_time(question.time)}, after the end of the clip; answered at its end"
    return Event(end, "notice", text)
