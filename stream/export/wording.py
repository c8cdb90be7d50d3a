"""How an event reads as one line of text."""

from __future__ import annotations

from stream.export.times import format_time
from stream.frames import Event, EventKind, Evidence

_PREFIX: dict[EventKind, str] = {"narration": "", "question": "Q: ", "answer": "A: ", "notice": "notice: "}


def one_line(event: Event) -> str:
    """The event's text on one line, questions, answers and notices marked as such; behind a recalled answer
    the moments it was recalled from."""
    evidence = f" ({'; '.join(map(_moment, event.evidence))})" if event.evidence else ""
    return _PREFIX[event.kind] + " ".join(event.text.split()) + evidence


def _moment(evidence: Evidence) -> str:
    said = " ".join(evidence.text.split())
    return f"at {format_time(evidence.time)}{': ' if said else ''}{said}"
