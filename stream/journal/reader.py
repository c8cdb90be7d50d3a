"""Reading a journal: also while another process writes it."""

from __future__ import annotations

import io
import re
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import msgspec
import numpy as np
from PIL import Image

from stream.frames import Event, Evidence
from stream.journal import database, sights

MOST_WORDS = 32  # of a search


@dataclass(frozen=True)
class Said:
    """Something said of the stream, and how near it is to what was searched (smaller is nearer)."""

    time: float
    text: str
    distance: float = 0.0


@dataclass(frozen=True)
class KeptFrame:
    """A frame of the journal. `picture` is RGB, uint8 [height, width, 3]."""

    time: float
    picture: np.ndarray


class JournalReader:
    """Questions to a journal. A context manager. Times are seconds of its clock.

    Raises JournalError for a file that can't be read, now or later.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection = database.open_to_read(path)

    @property
    def end(self) -> float:
        """The time of the last thing in it; 0 for an empty one."""
        ((last,),) = self._rows(
            "SELECT max(time) FROM (SELECT max(time) AS time FROM event UNION ALL SELECT max(start) FROM run"
            " UNION ALL SELECT max(time) FROM frame WHERE said = 0"
            " UNION ALL SELECT max(time) FROM frame WHERE said = 1)"
        )
        return last or 0.0

    def events(self) -> list[Event]:
        """Everything that was said."""
        rows = self._rows("SELECT time, kind, text, evidence FROM event ORDER BY time, id")
        return [
            Event(time, kind, text, msgspec.json.decode(evidence, type=tuple[Evidence, ...]))
            for time, kind, text, evidence in rows
        ]

    def narrations(self, start: float, end: float, latest: bool, most: int) -> list[Said]:
        """What was narrated from `start` to `end`, the first or the latest of it."""
        rows = self._rows(
            "SELECT time, text FROM event WHERE kind = 'narration' AND time BETWEEN ? AND ?"
            f" ORDER BY time {'DESC' if latest else ''}, id LIMIT ?",
            start, end, most,
        )  # fmt: skip
        return sorted((Said(*row) for row in rows), key=lambda said: said.time)

    def search(self, text: str, start: float, end: float, most: int) -> list[Said]:
        """What was narrated from `start` to `end` with words of `text` in it, the nearest first.

        Words are taken as words whatever they are: nothing in `text` is syntax.
        """
        words = re.findall(r"\w+", text)[:MOST_WORDS]
        if not words:
            return []
        rows = self._rows(
            "SELECT event.time, event.text, event_text.rank FROM event_text"
            " JOIN event ON event.id = event_text.rowid"
            " WHERE event_text MATCH ? AND event.time BETWEEN ? AND ? AND event.kind = 'narration'"
            " ORDER BY event_text.rank LIMIT ?",
            " OR ".join(f'"{word}"' for word in words), start, end, most,
        )  # fmt: skip
        return [Said(*row) for row in rows]

    def frame_at(self, time: float) -> KeptFrame | None:
        """The latest kept frame up to a time: its picture changed little until then. The first one where all
        are later."""
        latest = self._rows(
            " UNION ALL ".join(
                "SELECT * FROM (SELECT id, time FROM frame"
                f" WHERE said = {said} AND time <= ?1 ORDER BY time DESC LIMIT 1)"
                for said in (0, 1)
            )
            + " ORDER BY time DESC LIMIT 1",
            time,
        )
        found = latest or self._rows("SELECT id, time FROM frame WHERE said IN (0, 1) ORDER BY time LIMIT 1")
        if not found:
            return None
        pictures = self._rows("SELECT jpeg FROM picture WHERE frame = ?", found[0][0])
        return KeptFrame(found[0][1], _decoded(pictures[0][0])) if pictures else None

    def sights(
        self, space: int, weights: np.ndarray, start: float, end: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Of each kept frame whose signature is of this space its time, float64 [frames], and the largest of
        its shares, each times its class's weight (float32 [classes]), float32 [frames]."""
        rows = self._rows(
            "SELECT time, signature FROM frame WHERE said IN (0, 1) AND space = ? AND time BETWEEN ? AND ?",
            space, start, end,
        )  # fmt: skip
        times = np.array([time for time, _ in rows])
        return times, sights.largest([packed for _, packed in rows], weights)

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _rows(self, query: str, *values: Any) -> list[Any]:
        # Fetched at once: an open query would keep the writer from beginning its log anew.
        try:
            return self._connection.execute(query, values).fetchall()
        except sqlite3.DatabaseError as error:
            raise database.unusable(self.path, error) from error


def _decoded(jpeg: bytes) -> np.ndarray:
    """RGB, uint8 [height, width, 3]."""
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))
