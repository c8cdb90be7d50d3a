"""A source played through a session."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from stream.frames import Event, Frame

if TYPE_CHECKING:
    from stream.session import Session


def play(
    feed: Iterable[Frame | Event],
    session: Session,
    seen: Callable[[Frame], None],
    last_questions: Sequence[str] = (),
) -> Iterator[Event]:
    """Everything said about the stream, as it is said; `last_questions` are asked at its end.

    `seen` hears of every frame before it is read.
    """
    for item in feed:
        if isinstance(item, Event):
            yield item
        else:
            seen(item)
            yield from session.step(item)
    for question in last_questions:
        session.ask(question)
    yield from session.finish()
