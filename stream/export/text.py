"""Plain text: `[mm:ss] what happened`."""

from __future__ import annotations

from stream.export.times import format_time
from stream.export.wording import one_line
from stream.export.writer import Writer
from stream.frames import Event


class TextWriter(Writer):
    def write(self, event: Event) -> None:
        self._sink.write(f"[{format_time(event.time)}] {one_line(event)}\n")
