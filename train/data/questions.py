"""Questions that an annotation answers: templates, with answers that are true by construction."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random

from train.data.annotations import AnnotatedVideo, Segment

MOMENT = 1.0  # seconds for which something without an end counts as happening
LONGEST_SUMMARY = 8  # things


@dataclass(frozen=True)
class Known:
    """What the annotation tells at a time to somebody who has watched from `began` on, both in seconds."""

    current: tuple[Segment, ...]  # happening at the time, whenever it began
    past: tuple[Segment, ...]  # begun after `began` and over, by end
    coming: tuple[Segment, ...]  # beginning after the time, by start
    seen_whole: tuple[Segment, ...]  # begun after `began`, over or not, by start
    anything_missed: bool  # did something that was going on at `began` begin before?

    @classmethod
    def at(cls, time: float, began: float, video: AnnotatedVideo) -> Known:
        current, past, coming, seen, missed = [], [], [], [], False
        for segment in video.segments:
            over = _end(segment) <= time
            if segment.start > time:
                coming.append(segment)
                continue
            if not over:
                current.append(segment)
            if segment.start >= began:
                seen.append(segment)
                if over:
                    past.append(segment)
            elif _end(segment) > began:
                missed = True
        past.sort(key=_end)
        return cls(tuple(current), tuple(past), tuple(coming), tuple(seen), missed)


@dataclass(frozen=True)
class Kind:
    """One kind of question: its wordings, and its answer, which is None where the annotation has none."""

    wordings: tuple[str, ...]
    answer: Callable[[Known], str | None]


def ask(random: Random, time: float, began: float, video: AnnotatedVideo) -> tuple[str, str] | None:
    """A question at a time and its answer, of a random kind among those with one; None where none has any."""
    known = Known.at(time, began, video)
    for name in random.sample(sorted(KINDS), len(KINDS)):
        answer = KINDS[name].answer(known)
        if answer is not None:
            return random.choice(KINDS[name].wordings), answer
    return None


def sentence(text: str) -> str:
    """A text of an annotation as a sentence: one capital, one full stop."""
    words = " ".join(text.split()).rstrip(".,;: ")
    return words[:1].upper() + words[1:] + ("" if words.endswith(("!", "?")) else ".")


def _end(segment: Segment) -> float:
    return segment.start + MOMENT if segment.end is None else segment.end


def _told(segments: Iterable[Segment]) -> list[str]:
    """Their sentences, each once."""
    return list(dict.fromkeys(sentence(segment.text) for segment in segments))


def _now(known: Known) -> str | None:
    return " ".join(_told(known.current)) or None


def _before(known: Known) -> str | None:
    return sentence(known.past[-1].text) if known.past else None


def _next(known: Known) -> str | None:
    if not (known.current or known.past):
        return None  # before anything has happened there is nothing to foresee it from
    soonest = known.coming[:1]
    return " ".join(_told(each for each in known.coming if each.start == soonest[0].start)) or None


def _first(known: Known) -> str | None:
    if known.anything_missed or not known.seen_whole:
        return None
    first = known.seen_whole[0].start
    return " ".join(_told(each for each in known.seen_whole if each.start == first))


def _how_long(known: Known) -> str | None:
    if not known.past or known.past[-1].end is None:
        return None
    seconds = round(known.past[-1].end - known.past[-1].start)
    return f"About {seconds} second{'s' * (seconds != 1)}." if seconds else "Less than a second."


def _summary(known: Known) -> str | None:
    told = _told(known.seen_whole)
    if not 2 <= len(told) <= LONGEST_SUMMARY:
        return None
    return " ".join(f"{'Then' if number else 'First'}: {each}" for number, each in enumerate(told))


KINDS: dict[str, Kind] = {
    "now": Kind(
        ("What is happening now?", "What is being done right now?", "What do you see at the moment?"), _now
    ),
    "before": Kind(
        ("What was done just before?", "What happened last?", "What was finished most recently?"), _before
    ),
    "next": Kind(("What is done next?", "What will happen next?", "What comes next?"), _next),
    "first": Kind(
        ("What was done first?", "What came first?", "What was the first thing that happened?"), _first
    ),
    "how long": Kind(
        ("How long did the last thing take?", "How long did what was just finished take?"), _how_long
    ),
    "summary": Kind(
        ("What has happened so far?", "Sum up what you have seen so far.", "Give me a summary until now."),
        _summary,
    ),
}
