"""Where writers put their text: whole pieces that are out at once, or not at all."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Protocol, TextIO


class Sink(Protocol):
    def write(self, piece: str) -> None: ...

    def close(self) -> None: ...


class StreamSink:
    """A stream somebody else owns, such as standard output; flushed after every piece."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, piece: str) -> None:
        self._stream.write(piece)
        self._stream.flush()

    def close(self) -> None:
        """The stream stays open for its owner."""


class FileSink:
    """A file that never holds half a piece, not even on a full disk.

    Unbuffered, so that a piece is with the system when `write` returns and a kill loses nothing. Missing
    folders are made. Raises OSError with the file's name.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._file = path.open("wb", buffering=0)
        self._end = 0

    def write(self, piece: str) -> None:
        data = piece.encode()
        written = 0
        try:
            while written < len(data):
                written += self._file.write(data[written:])
        except OSError as error:
            with contextlib.suppress(OSError):  # pipes and devices have no end to cut
                self._file.seek(self._end)
                self._file.truncate()
            raise OSError(error.errno, error.strerror, str(self._path)) from error
        self._end += written

    def close(self) -> None:
        self._file.close()
