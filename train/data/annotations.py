"""What readers of annotation give, whatever the format: videos, and what happens in them when."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Segment:
    """Something that happens from `start` seconds on, to `end` where the annotation tells it."""

    start: float
    text: str
    end: float | None = None


@dataclass(frozen=True)
class AnnotatedVideo:
    """One video; `video` is its name in the annotation, mostly a file's stem."""

    video: str
    segments: tuple[Segment, ...]  # by start
    duration: float | None = None  # seconds
    split: str = ""  # as the annotation names it
    task: str = ""  # what the whole of it is about, where the annotation tells it


@dataclass(frozen=True)
class Turn:
    """One of a dialogue's turns, at its time in the video in seconds."""

    time: float
    role: str  # "user" or "assistant"
    text: str


@dataclass(frozen=True)
class Dialogue:
    """What is said while the seconds from `start` to `end` of a video are watched; `turns` by time, a user's
    before its answer at the same time."""

    video: str
    start: float
    end: float
    turns: tuple[Turn, ...]


@dataclass
class Skipped:
    """What was left out, counted by reason, with the first place of each."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, place: str) -> None:
        self.counts[reason] += 1
        self.first.setdefault(reason, place)

    def update(self, other: Skipped) -> None:
        """Count what another one counted, too."""
        self.counts.update(other.counts)
        self.first = other.first | self.first

    def __str__(self) -> str:
        return "; ".join(f"{n} x {why} (first: {self.first[why]})" for why, n in self.counts.items())
