"""Times in questions as people write them: "at 01:12:40", "ten minutes ago", "in the beginning"."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from stream.export.times import parse_time

Order = Literal["first", "last"]

_WORDS = (
    "zero",
    "a an one",
    "two couple",
    "three few",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
)
_NUMBERS = {word: float(value) for value, words in enumerate(_WORDS) for word in words.split()} | {
    "half": 0.5,
    "eleven": 11.0,
    "twelve": 12.0,
    "fifteen": 15.0,
    "twenty": 20.0,
    "thirty": 30.0,
    "forty": 40.0,
    "fifty": 50.0,
    "sixty": 60.0,
}
_UNITS = {"s": 1, "m": 60, "h": 3600}
_CLOCK = r"\d+:\d\d(?::\d\d)?(?:\.\d+)?"
_NUMBER = rf"(?:(?:a|an)\s+)?(?:\d+(?:\.\d+)?|{'|'.join(_NUMBERS)})(?:\s+(?:of|an?))?"
_UNIT = r"(?:s|secs?|seconds?|m|mins?|minutes?|h|hrs?|hours?)"
_AMOUNT = rf"(?P<number>{_NUMBER})\s*(?P<unit>{_UNIT})\b"
_SOME = rf"(?:(?P<number>{_NUMBER})\s*)?(?P<unit>{_UNIT})\b"  # "the last minute" is one


@dataclass(frozen=True)
class TimeWords:
    """Where in time a question looks, from `start` to `end` in seconds of the stream: whether that stretch is
    named, and whether it is an instant, its end. `before` or `after` hold what it is relative to ("the cup
    left"). `rest` is the question without these words."""

    rest: str
    start: float = 0.0
    end: float = math.inf
    named: bool = False
    instant: bool = False
    order: Order | None = None
    before: str | None = None
    after: str | None = None


def time_words(question: str, now: float) -> TimeWords:
    """What a question says of time, asked at `now` seconds of the stream."""
    found = TimeWords(" ".join(question.split()))
    for pattern, read in _STRETCHES:
        if match := pattern.search(found.rest):
            try:
                found = replace(read(_without(found, match), match, now), named=True)
            except (ValueError, OverflowError):  # 1:75 is no time
                continue
            break
    for pattern, order in _BOUNDS:
        if match := pattern.search(found.rest):
            found = replace(_without(found, match), order=order)
    if found.order is None and (match := _ORDER.search(found.rest)):
        found = replace(found, order="first" if match[0].lower() in ("first", "initially") else "last")
    if match := _RELATIVE.search(found.rest):
        what = match["what"].strip(" ?!.,")
        found = _without(found, match)
        found = replace(found, before=what) if match[1].lower() == "before" else replace(found, after=what)
    return found


def _without(found: TimeWords, match: re.Match[str]) -> TimeWords:
    rest = f"{found.rest[: match.start()]} {found.rest[match.end() :]}"
    rest = re.sub(r"\s+([?!.,])", r"\1", " ".join(rest.split())).lstrip(" ,")
    if rest and found.rest.endswith("?") and not rest.endswith("?"):
        rest += "?"
    return replace(found, rest=rest[:1].upper() + rest[1:])


def _seconds(match: re.Match[str]) -> float:
    words = (match["number"] or "one").lower().split()
    number = next((word for word in words if word not in ("a", "an", "of")), "one")
    return (_NUMBERS[number] if number in _NUMBERS else float(number)) * _UNITS[match["unit"][0].lower()]


def _clock(text: str) -> tuple[float, float]:
    """A time of the stream, to the end of what it names: of a whole second all of it."""
    seconds = parse_time(text)
    return seconds, seconds if "." in text else seconds + 0.999


def _between(found: TimeWords, match: re.Match[str], now: float) -> TimeWords:
    start, end = sorted((_clock(match["from"]), _clock(match["to"])))
    return replace(found, start=start[0], end=end[1])


def _before(found: TimeWords, match: re.Match[str], now: float) -> TimeWords:
    return replace(found, end=max(0.0, _clock(match["clock"])[0] - 0.001), instant=True)


def _after(found: TimeWords, match: re.Match[str], now: float) -> TimeWords:
    return replace(found, start=_clock(match["clock"])[1], order="first")


def _at(found: TimeWords, match: re.Match[str], now: float) -> TimeWords:
    start, end = _clock(match["clock"])
    return replace(found, start=start, end=end, instant=True)


def _at_amount(found: TimeWords, match: re.Match[str], now: float) -> TimeWords:
    return replace(found, start=_seconds(match), end=_seconds(match) + 0.999, instant=True)


def _ago(found: TimeWords, match: re.Match[str], now: float) -> TimeWords:
    then = max(0.0, now - _seconds(match))
    return replace(found, start=then, end=then, instant=True)


def _within_last(found: TimeWords, match: re.Match[str], now: float) -> TimeWords:
    return replace(found, start=max(0.0, now - _seconds(match)), end=now)


def _within_first(found: TimeWords, match: re.Match[str], now: float) -> TimeWords:
    return replace(found, end=_seconds(match))


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w:]){text}(?![\w:])", re.IGNORECASE)


_Reading = Callable[[TimeWords, re.Match[str], float], TimeWords]
_IN = r"(?:(?:in|during|within|over|for)\s+)?"
# The first that is found is read.
_STRETCHES: list[tuple[re.Pattern[str], _Reading]] = [
    (
        _pattern(rf"(?:between|from)\s+(?P<from>{_CLOCK})\s+(?:and|to|until|till)\s+(?P<to>{_CLOCK})"),
        _between,
    ),
    (_pattern(rf"{_IN}(?:the\s+)?(?:last|past)\s+{_SOME}"), _within_last),
    (_pattern(rf"{_IN}the\s+first\s+{_SOME}"), _within_first),
    (_pattern(rf"(?:about\s+|around\s+)?{_AMOUNT}\s+(?:ago|earlier)"), _ago),
    (_pattern(rf"(?:before|until|till)\s+(?P<clock>{_CLOCK})"), _before),
    (_pattern(rf"(?:after|since|from)\s+(?P<clock>{_CLOCK})"), _after),
    (_pattern(rf"(?:(?:at|around|about|near|by)\s+)*(?P<clock>{_CLOCK})"), _at),
    (_pattern(rf"(?:at|after)\s+{_AMOUNT}"), _at_amount),
    (_pattern(r"(?:at|in)\s+(?P<unit>second|minute|hour)\s+(?P<number>\d+)"), _at_amount),
]
_BOUNDS: list[tuple[re.Pattern[str], Order]] = [
    (_pattern(r"(?:(?:in|at|from|near)\s+)?the\s+(?:very\s+)?(?:beginning|start)"), "first"),
    (_pattern(r"(?:at first|to begin with)"), "first"),
    (_pattern(r"(?:in|at|near)\s+the\s+(?:very\s+)?end"), "last"),
]
_ORDER = _pattern(r"(?:first|initially|last|latest|lately|most recent(?:ly)?|recently|just now)")
_RELATIVE = re.compile(r"\b(before|after)\s+(?P<what>\w.*)$", re.IGNORECASE)
