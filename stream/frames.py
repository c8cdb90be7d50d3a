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


class Event(msgspec.Struct, frozen=True):
    """Something said at `time` (seconds of the stream): one line of a JSONL log."""

    time: float
    kind: EventKind
    text: str
