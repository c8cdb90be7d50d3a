"""Subtitle cues: what is on the screen from when until when."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

from stream.export.wording import one_line
from stream.export.writer import Writer
from stream.frames import Event

LONGEST = 4.0


@dataclass(frozen=True, slots=True)
class Cue:
    """Lines of text shown from `start` to `end`, in seconds."""

    start: float
    end: float
    lines: tuple[str, ...]


class CueBuilder:
    """Makes cues of events: each lasts until the next one, at most 4 s. Notices make none."""

    def __init__(self) -> None:
        self._pending: Cue | None = None

    def add(self, event: Event) -> Cue | None:
        """The cue that this event ends, if any. Events of one moment share a cue."""
        if event.kind == "notice" or not event.text.strip():
            return None
        start = round(max(event.time, 0.0), 3)  # the milliseconds that subtitle formats hold
        before = self._pending
        if before and start <= before.start:
            self._pending = replace(before, lines=(*before.lines, one_line(event)))
            return None
        self._pending = Cue(start, start + LONGEST, (one_line(event),))
        return before and replace(before, end=min(before.end, start))

    def finish(self) -> Cue | None:
        """The last cue."""
        last, self._pending = self._pending, None
        return last


def cues_of(events: Iterable[Event]) -> Iterator[Cue]:
    """The cues of a finished list of events."""
    builder = CueBuilder()
    for event in events:
        if cue := builder.add(event):
            yield cue
    if cue := builder.finish():
        yield cue


class CueWriter(Writer):
    """A subtitle format: a cue is written whole once its end is known, the last one on closing."""

    def __init__(self, target: Path | TextIO) -> None:
        super().__init__(target)
        self._builder = CueBuilder()

    @abstractmethod
    def block(self, cue: Cue) -> str:
        """The cue as the format writes it."""

    def write(self, event: Event) -> None:
        if cue := self._builder.add(event):
            self._sink.write(self.block(cue))

    def close(self) -> None:
        try:
            if cue := self._builder.finish():
                self._sink.write(self.block(cue))
        finally:
            super().close()
