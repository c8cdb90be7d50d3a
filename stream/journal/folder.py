"""A folder of journals, one a stream, within the size that all of them may take."""

from __future__ import annotations

import re
from pathlib import Path

from stream.frames import Event
from stream.journal import database
from stream.journal.reader import JournalReader
from stream.journal.writer import Journal

_NAME = re.compile(r"[0-9a-f]{16}")
_FILE = re.compile(rf"({_NAME.pattern})(?:-(\d+))?\.db")
_BESIDE = ("-wal", "-shm", "")


class JournalFolder:
    """Journals of streams whose names are 16 hexadecimal digits: `NAME.db`, and `NAME-2.db`, `NAME-3.db`...
    of a stream that was begun anew.

    Each takes at most `size` bytes, and all of them `total`: where a new one might not fit, those that ended
    longest ago are removed. Those that are being written stay, and so do other files.
    """

    def __init__(self, folder: Path, size: int, total: int) -> None:
        self.folder = folder
        self.size = size
        self.total = total

    def begin(self, name: str) -> Journal:
        """A new journal of that stream. Raises JournalError and OSError."""
        self._make_room()
        part = len(self._parts(name)) + 1
        return Journal(self.folder / (f"{name}.db" if part == 1 else f"{name}-{part}.db"), self.size)

    def events(self, name: str) -> list[Event]:
        """Everything that was said of that stream, whose journals may be written meanwhile; nothing where
        there are none. Raises JournalError."""
        said: list[Event] = []
        for path in self._parts(name):
            with JournalReader(path) as reader:
                said += reader.events()
        return said

    def _parts(self, name: str) -> list[Path]:
        """The journals of a stream, in the order in which they were begun."""
        if not _NAME.fullmatch(name):
            return []
        found = [(_FILE.fullmatch(path.name), path) for path in self.folder.glob(f"{name}*.db")]
        return [path for _, path in sorted((int(match[2] or 1), path) for match, path in found if match)]

    def _make_room(self) -> None:
        """Remove old journals until one more can grow to its size, beside those that are still growing."""
        growing, ended = 1, []
        for path in self.folder.glob("*.db"):
            if not _FILE.fullmatch(path.name):
                continue
            try:
                database.lock(path).close()
            except database.JournalError:
                growing += 1
                continue
            files = [file.stat() for file in _files(path) if file.exists()]
            ended.append((max(file.st_mtime for file in files), sum(file.st_size for file in files), path))
        room = self.total - growing * self.size - sum(nbytes for _, nbytes, _ in ended)
        for _, nbytes, path in sorted(ended):
            if room >= 0:
                return
            for file in (*_files(path), path.with_name(f"{path.name}-lock")):
                file.unlink(missing_ok=True)
            room += nbytes


def _files(path: Path) -> list[Path]:
    """Of a journal, itself last: what is beside it means nothing without it."""
    return [path.with_name(path.name + ending) for ending in _BESIDE]
