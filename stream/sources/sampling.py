"""From raw time stamps to sampled frames."""

from __future__ import annotations

import math

# Matroska, FLV and others round time stamps to a millisecond: a 30 fps frame at 1/30 s reads 0.033 s.
ROUNDING_SECONDS = 1e-3
# A smaller step back is disorder around a spoiled picture, and passes; a larger one is a splice.
DISORDER_SECONDS = 1.0


class Timeline:
    """Places frames in seconds since the first one; its times never run backward.

    `period` (seconds) is the step to a frame without a time stamp, and to one whose stamp jumps backward
    or, farther than `max_gap` seconds, forward.
    """

    def __init__(self, period: float, max_gap: float = math.inf) -> None:
        self._period = period
        self._max_gap = max_gap
        self._time: float | None = None
        self._origin: float | None = None

    def place(self, stamp: float | None) -> float:
        """The time of the next frame, given its raw presentation time in seconds (None when it has none)."""
        expected = 0.0 if self._time is None else self._time + self._period
        if stamp is None:
            time = expected
        else:
            if self._origin is None:
                self._origin = stamp - expected
            time = stamp - self._origin
            if self._time is not None:
                step = time - self._time
                if -DISORDER_SECONDS <= step < 0:
                    time = self._time
                elif step < 0 or step > self._max_gap:
                    self._origin, time = stamp - expected, expected
        self._time = round(time, 6)
        return self._time


def lies_between_ticks(time: float, fps: float, period: float) -> bool:
    """Whether a frame at `time` (seconds), of a stream with a frame each `period`, is surely none that a
    `Sampler` takes: the tick is well behind it, and the next one not yet reached."""
    since_tick = time * fps % 1
    return 2 * period * fps < since_tick < 1 - (period + ROUNDING_SECONDS) * fps


class Sampler:
    """Takes the first frame at or after each tick k / `fps` of the sample clock.

    A gap longer than a tick yields nothing: one frame never stands for two ticks.
    """

    def __init__(self, fps: float) -> None:
        self._fps = fps
        self._slack = min(ROUNDING_SECONDS * fps, 0.25)
        self._tick = -1

    def takes(self, time: float) -> bool:
        """Whether the frame at `time` (seconds) is one of the sample."""
        tick = math.floor(time * self._fps + self._slack)
        if tick <= self._tick:
            return False
        self._tick = tick
        return True
