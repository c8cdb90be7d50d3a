"""What flows through the rooms: a frame goes in, an event comes out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np

EventKind = Literal["narration", "answer", "question", "notice"]


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture of a stream.

    `time` is its presentation time in seconds from the start of the stream; `pixels` is RGB,
    uint8 [height, width, 3], upright (rotation metadata already applied).
    """

    time: float
    pixels: np.ndarray


class Evidence(msgspec.Struct, frozen=True):
    """A moment that an answer was recalled from: its time, and what was said then (empty: nothing was)."""

    time: float
    text: str


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """Something said at `time` (seconds of the stream): one line of a JSONL log.

    `evidence` is what the journal held of the moments that an answer was recalled from, in order of time.
    """

    time: float
    kind: EventKind
    text: str
    evidence: tuple[Evidence, ...] = ()


class JournalNotice(Event, frozen=True):
    """A notice of the journal's own state, not of the stream: that it pauses, or goes on."""
