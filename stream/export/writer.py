"""What every export format has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, Self, TextIO

from stream.export.sinks import FileSink, Sink, StreamSink
from stream.frames import Event


class Writer(ABC):
    """Writes events as they happen, to a file it opens or to a text stream that stays its owner's.

    A context manager. Raises OSError where the target cannot be written; what was written before stays.
    """

    opening: ClassVar[str] = ""

    def __init__(self, target: Path | TextIO) -> None:
        self._sink: Sink = FileSink(target) if isinstance(target, Path) else StreamSink(target)
        if self.opening:
            self._sink.write(self.opening)

    @abstractmethod
    def write(self, event: Event) -> None:
        """Take the next event; times must not go back."""

    def close(self) -> None:
        self._sink.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
