"""How an event reads as one line of text."""

from __future__ import annotations

from stream.frames import Event, EventKind

_PREFIX: dict[EventKind, str] = {"narration": "", "question": "Q: ", "answer": "A: ", "notice": "notice: "}


def one_line(event: Event) -> str:
    """The event's text on one line, questions, answers and notices marked as such."""
    return _PREFIX[event.kind] + " ".join(event.text.split())
