"""A source played through a session."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from stream.frames import Event, Frame

if TYPE_CHECKING:
    from stream.feed import Feed
    from stream.session import Session

MOST_TOGETHER = 8  # frames; with more a file is read no faster (benchmarks/README.md)


def play(
    feed: Feed,
    session: Session,
    seen: Callable[[Frame], None],
    last_questions: Sequence[str] = (),
) -> Iterator[Event]:
    """Everything said about the stream, as it is said; `last_questions` are asked at its end.

    Frames that wait are read together. `seen` hears of every frame before it is read. Where the session's
    journal is continued, the clock goes on from its end.
    """
    waiting: list[Frame] = []
    for item in feed:
        time = item.time + session.start
        if isinstance(item, Event):
            yield from session.tell(msgspec.structs.replace(item, time=time))
            continue
        frame = replace(item, time=time)
        seen(frame)
        waiting.append(frame)
        if len(waiting) == MOST_TOGETHER or not feed.more():
            yield from session.step(*waiting)
            waiting.clear()
    for question in last_questions:
        session.ask(question)
    yield from session.finish()
