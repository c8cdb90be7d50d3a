"""Writing a journal, within the size it may have."""

from __future__ import annotations

import math
import sqlite3
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np

from stream.export.times import format_time
from stream.frames import Event, JournalNotice
from stream.journal import database
from stream.journal.reader import JournalReader
from stream.journal.sights import pack
from stream.journal.thinning import thin

DEFAULT_SIZE = 2_000_000_000
LEAST_SIZE = 4_000_000
LOG_SHARE, LONGEST_LOG = 0.125, 32_000_000  # of the size, what the write-ahead log may take
INDEX_BYTES = 256 * 1024  # of so long a log, at most
SPARE_SHARE = 0.125  # of the file: the index of words needs room to be merged
# What a transaction takes at most, in the file or in the log: pages that are touched anyway; an event beside
# its text, a letter of which is in the index of words, too; a frame beside its picture.
BASE_BYTES, EVENT_BYTES, LETTER_BYTES, FRAME_BYTES = 65536, 1024, 8, 8192
EVENTS_TOGETHER = 32
BESIDE_SECONDS = 0.5  # a frame that was kept so shortly before something was said is kept as that
RELEASED_PAGES = 256  # at a time, to the file system
MOST_WAITING = 10_000  # events that are held while the disk is full


@dataclass(frozen=True)
class Keepsake:
    """What a journal keeps of a frame: a small JPEG, and what it shows, int8 [classes] of a space of
    `videollm.signature`. `said`: something was said at it."""

    time: float
    said: bool
    picture: bytes
    space: int
    signature: np.ndarray


class Journal(JournalReader):
    """The one writer of a journal. Where `path` holds one already, it is continued: its clock goes on from
    `start`, the whole second after its end, which the frames' times of this run are to be counted from.

    File, log and index together stay under `size` bytes: old frames are thinned first, those at which
    something was said after the others, and events last (`stream.journal.thinning`). `source` is noted
    with the run.

    Raises JournalError where another program writes it, or for a file that is no journal. What goes wrong
    later (a full disk) is told by a notice, and events are held until they can be written.
    """

    def __init__(self, path: Path, size: int = DEFAULT_SIZE, *, source: str = "") -> None:
        if size < LEAST_SIZE:
            raise ValueError(f"a journal needs at least {LEAST_SIZE} bytes, got {size}")
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = database.lock(path)
        try:
            self._connection, aside = database.open_to_write(path)
        except BaseException:
            self._lock.close()
            raise
        self._longest_log = min(int(size * LOG_SHARE), LONGEST_LOG)
        largest = size - self._longest_log - INDEX_BYTES
        self._most = int(largest * (1 - SPARE_SHARE))
        self._waiting: deque[Event] = deque(maxlen=MOST_WAITING)
        self._paused = False
        try:
            self._page = self._pragma("page_size")
            self._connection.execute(f"PRAGMA wal_autocheckpoint = {self._longest_log // self._page // 4}")
            self._shrink()
            self._connection.execute(f"PRAGMA max_page_count = {largest // self._page}")
            self.start = float(math.ceil(self.end))
            began = datetime.now(UTC).isoformat(timespec="seconds")
            self._connection.execute(
                "INSERT INTO run (start, began, source) VALUES (?, ?, ?)", (self.start, began, _clean(source))
            )
        except sqlite3.DatabaseError as error:
            self.close()
            raise database.JournalError(f"{path} can't be written: {error}") from error
        self.problem = f"the journal was damaged; it lies in {aside} now" if aside else None
        """What was wrong with the file when it was opened."""

    def record(self, events: Sequence[Event], frames: Sequence[Keepsake] = ()) -> list[Event]:
        """Keep these, in one transaction unless they are many.

        Gives the notices that are to be told: it can't be written; it can again. Frames that come in
        between are lost, events wait.
        """
        now = max([event.time for event in events] + [frame.time for frame in frames], default=self.start)
        if self.problem:
            notices, self.problem = [JournalNotice(now, "notice", self.problem)], None
            return [*notices, *self.record([*notices, *events], frames)]
        self._waiting += events
        if not self._waiting and not frames:
            return []
        try:
            while self._waiting or frames:
                together = list(islice(self._waiting, EVENTS_TOGETHER))
                self._write(together, frames)
                frames = ()
                for _ in together:
                    self._waiting.popleft()
        except sqlite3.DatabaseError as error:
            if self._connection.in_transaction:
                self._connection.rollback()
            return self._pause(now, error)
        if not self._paused:
            return []
        self._paused = False
        return [JournalNotice(now, "notice", "the journal goes on")]

    def nbytes(self) -> int:
        """What its files take on the disk."""
        beside = (self.path.with_name(self.path.name + ending) for ending in ("", "-wal", "-shm"))
        return sum(file.stat().st_size for file in beside if file.exists())

    def close(self) -> None:
        super().close()
        self._lock.close()

    def _write(self, events: Sequence[Event], frames: Sequence[Keepsake]) -> None:
        """One transaction. Raises sqlite3.DatabaseError, and then nothing of it is written."""
        self._make_room(
            BASE_BYTES
            + sum(EVENT_BYTES + LETTER_BYTES * len(event.text) for event in events)
            + sum(FRAME_BYTES + len(frame.picture) for frame in frames)
        )
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        for event in events:
            evidence = msgspec.json.encode(event.evidence).decode()
            execute(
                "INSERT INTO event (time, kind, text, evidence) VALUES (?, ?, ?, ?)",
                (event.time, event.kind, _clean(event.text), evidence),
            )
            if event.kind != "notice":
                beside = "UPDATE frame SET said = 1 WHERE said = 0 AND time > ? AND time <= ?"
                execute(beside, (event.time - BESIDE_SECONDS, event.time))
        for frame in frames:
            signature = pack(frame.signature)
            added = execute(
                "INSERT INTO frame (time, said, space, signature) VALUES (?, ?, ?, ?)",
                (frame.time, frame.said, frame.space, signature),
            )
            execute("INSERT INTO picture (frame, jpeg) VALUES (?, ?)", (added.lastrowid, frame.picture))
        execute("COMMIT")

    def _pause(self, now: float, error: sqlite3.DatabaseError) -> list[Event]:
        if self._paused:
            return []
        self._paused = True
        full = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
        reason = "the disk is full" if full else str(error)
        since = format_time(now)
        text = f"the journal pauses at {since}: {reason}; what is said is kept until there is room again"
        return [JournalNotice(now, "notice", text)]

    def _make_room(self, coming: int) -> None:
        """Thin until so many bytes fit, into the file and into its log."""
        self._check_log(coming)
        while self._used() + coming > self._most and thin(self._connection):
            self._check_log(coming)

    def _check_log(self, coming: int) -> None:
        """Begin the log anew before it grows too long. OperationalError where a reader holds on to it."""
        log = self.path.with_name(self.path.name + "-wal")
        if log.exists() and log.stat().st_size + coming > self._longest_log // 2:
            # Without waiting: a reader that holds on must not stop the stream.
            self._connection.execute("PRAGMA busy_timeout = 0")
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._connection.execute(f"PRAGMA busy_timeout = {int(1000 * database.WAIT_SECONDS)}")
            if log.stat().st_size + coming > self._longest_log:
                raise sqlite3.OperationalError("another program holds on to its log")

    def _shrink(self) -> None:
        """Give back what is over the size: it was larger once."""
        self._make_room(0)
        while self._pragma("page_count") * self._page > self._most and self._pragma("freelist_count"):
            # As a script: `execute` would stop it after its first page.
            self._connection.executescript(f"PRAGMA incremental_vacuum({RELEASED_PAGES})")
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _used(self) -> int:
        """Bytes of the file that hold something."""
        return (self._pragma("page_count") - self._pragma("freelist_count")) * self._page

    def _pragma(self, name: str) -> int:
        return self._connection.execute(f"PRAGMA {name}").fetchone()[0]


def _clean(text: str) -> str:
    """As UTF-8 holds it: what a shell could not decode comes as lone surrogates."""
    return text.encode("utf-8", "backslashreplace").decode()
