"""What every source of frames promises."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from stream.frames import Frame

CLOSE_SECONDS = 1.0


class SourceError(Exception):
    """A source cannot be opened or read on; the message is one line that says what to do."""


class Source(ABC):
    """A stream of frames, sampled to a fixed rate; a context manager that is read once.

    Iterating raises SourceError when not one picture can be had, or when a live source stops
    delivering. A source may be closed from another thread than the one that reads it.
    """

    name: str
    """What to call it in messages."""
    live: bool = False
    """True for a camera or a live address: frames not read in time are lost."""
    duration: float | None = None
    """Seconds; None when unknown or endless."""
    problem: str | None = None
    """After iteration: what was wrong with the media, or None when it was sound to its end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._closed = False

    @abstractmethod
    def _frames(self) -> Iterator[Frame]:
        """The sampled frames. May block; ends soon once `_closed` is set."""

    @abstractmethod
    def _release(self) -> None:
        """Give back what the source holds open. May be called more than once."""

    def __iter__(self) -> Iterator[Frame]:
        frames = self._frames()
        while True:
            with self._lock:
                frame = None if self._closed else next(frames, None)
                if self._closed:
                    self._release()
            if frame is None or self._closed:
                return
            yield frame

    def close(self) -> None:
        """Stop and release. Returns within `CLOSE_SECONDS` even while another thread is blocked in a read;
        that thread then releases the device itself as soon as its read comes back."""
        patience = 0.0 if self._closed else CLOSE_SECONDS
        self._closed = True
        if self._lock.acquire(timeout=patience):
            try:
                self._release()
            finally:
                self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
