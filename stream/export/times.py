"""Times of a stream as people write them: `mm:ss`, `hh:mm:ss` from one hour on, or seconds."""

from __future__ import annotations

import re

# The leading field may count as far as it likes (90:00 is an hour and a half); the others stay below 60.
_TIME = re.compile(r"(?:(?:(?P<hours>\d+):)?(?P<minutes>\d+):)?(?P<seconds>\d+(?:\.\d+)?)", re.ASCII)


def format_time(seconds: float) -> str:
    """`mm:ss`, or `hh:mm:ss` from one hour on, of a time in seconds (its fraction dropped)."""
    # Rounded first: 4.9999999 is 5 s that went through a float, not 4.
    minutes, second = divmod(int(round(max(seconds, 0.0), 3)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours:02}:{minute:02}:{second:02}" if hours else f"{minute:02}:{second:02}"


def parse_time(text: str) -> float:
    """Seconds of `mm:ss`, `hh:mm:ss` or a plain number of seconds; fractions as in `01:02.5`.

    Raises ValueError with a one-line message.
    """
    match = _TIME.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no time; write it as mm:ss, hh:mm:ss or seconds")
    hours, minutes, seconds = match["hours"], match["minutes"], float(match["seconds"])
    if (minutes is not None and seconds >= 60) or (hours is not None and int(minutes) >= 60):
        raise ValueError(f"{text!r} is no time; minutes and seconds after a colon stay below 60")
    return int(hours or 0) * 3600 + int(minutes or 0) * 60 + seconds


def timestamp(seconds: float, point: str) -> str:
    """`hh:mm:ss<point>mmm`, as subtitle formats write it."""
    rest, milliseconds = divmod(round(max(seconds, 0.0) * 1000), 1000)
    minutes, second = divmod(rest, 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours:02}:{minute:02}:{second:02}{point}{milliseconds:03}"
