"""Which segments of an annotation can be learned from."""

from __future__ import annotations

import math
from collections.abc import Iterable

from train.data.annotations import Segment, Skipped

SLACK = 1.0  # seconds by which an end may lie beyond the video's: tools and containers count differently


def sound(
    segments: Iterable[Segment], video: str, duration: float | None, skipped: Skipped
) -> tuple[Segment, ...]:
    """The segments that can be, by start; each of the others is counted in `skipped` once.

    Out go those without text, with a time that is no number or negative, empty ones, and those that begin at
    or after the video's end or end more than `SLACK` after it (`duration` in seconds, None where it isn't
    known). An end a little beyond is moved to the video's.
    """
    kept = []
    for segment in segments:
        if reason := _fault(segment, duration):
            skipped.add(reason, f"{video} at {segment.start:g} s")
            continue
        end = segment.end if segment.end is None or duration is None else min(segment.end, duration)
        kept.append(Segment(segment.start, " ".join(segment.text.split()), end))
    return tuple(sorted(kept, key=lambda segment: segment.start))


def _fault(segment: Segment, duration: float | None) -> str | None:
    start, end = segment.start, segment.end
    if not segment.text.strip():
        return "segment without text"
    if not math.isfinite(start) or (end is not None and not math.isfinite(end)):
        return "segment with a time that is no number"
    if start < 0:
        return "segment before the video's beginning"
    if end is not None and end <= start:
        return "segment that is empty or ends before it begins"
    if duration is not None and (start >= duration or (end is not None and end > duration + SLACK)):
        return "segment beyond the video's end"
    return None
