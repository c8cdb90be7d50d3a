"""JSON Lines: one event a line, `{"time": seconds, "kind": ..., "text": ...}`."""

from __future__ import annotations

import msgspec

from stream.export.writer import Writer
from stream.frames import Event


class JsonlWriter(Writer):
    def write(self, event: Event) -> None:
        self._sink.write(msgspec.json.encode(event).decode() + "\n")
