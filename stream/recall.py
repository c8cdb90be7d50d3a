"""Recall: the moments of a journal that a question is about.

A question looks into the past by its time words ("at 01:12:40", "before the cup left") or by what it names
("where was the cup?"). Moments are found by the words of what was said then, and by the names of classes that
their frames show, also where nothing was said; both rankings count alike (reciprocal rank fusion, Cormack et
al., SIGIR 2009).
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from stream.frames import Evidence
from stream.journal.reader import JournalReader
from stream.sources.square import pad_to_square
from stream.timewords import TimeWords, time_words
from videollm import VideoLLM
from videollm.prompt import Prompt
from videollm.signature import FULL, question_signature, signature_space

MOST_MOMENTS = 6
MOST_HITS = 64
LEAST_SHARE = 0.25  # of a frame's classes, to count as seen
FUSION = 60.0
APART_SECONDS = 5.0  # frames of which nothing is told are of one moment below
SAME_SECONDS = 0.5  # a frame and a sentence that are no further apart are of one moment
# Words that say how a question asks, not what about.
_ASKING = frozenset(
    re.findall(
        r"\w+",
        """
        a about after again also always am an and any anything appear appeared appears are as at
        away be been before began being both but by came camera can clip come comes could did do
        does doing done during earlier else ever first for frame from gone had happen happened
        happens has have he her here him his how i in into is it its just last latest leave
        leaves left long look many may me middle might moment most much my near never no not
        nothing now of off on once one or other our out over picture present recent recently
        right saw scene see seen she show shown since so some something still stream that the
        their them then there these they thing things this those through time to today too two
        under until up us video view was way we went were what when where whether which while
        who whom whose why will with without would you your
        """,
    )
)
_PRESENT = re.compile(r"\b(now|currently|(?:is|are) there|do you see|(?:is|are) in view)\b", re.IGNORECASE)
_PAST = re.compile(r"\b(was|were|did|had|been|ever|earlier|already|previously)\b", re.IGNORECASE)
_GOING = re.compile(r"\b(when|leaves?|left|gone|went|disappear\w*)\b", re.IGNORECASE)
_PRESENT_TENSE = {"was": "is", "were": "are", "did": "do", "had": "has"}
_PAST_TENSE = re.compile(rf"\b({'|'.join(_PRESENT_TENSE)})\b", re.IGNORECASE)


@dataclass(frozen=True)
class Moment:
    """A moment of the journal: its frame, RGB uint8 [height, width, 3], where that is still kept, and what
    was narrated at it (empty: nothing was)."""

    time: float
    picture: np.ndarray | None
    text: str


@dataclass(frozen=True)
class Recollection:
    """Moments in order of time, and the question as it is asked at the last of them."""

    question: str
    moments: tuple[Moment, ...]

    @property
    def evidence(self) -> tuple[Evidence, ...]:
        return tuple(Evidence(moment.time, moment.text) for moment in self.moments)

    def within(self, tokens: int, prompt: Prompt) -> Self | None:
        """The latest moments of it that are read in so many tokens; None where not even one is."""
        kept = self
        while kept.moments and len(kept._ids(prompt)) > tokens:
            kept = replace(kept, moments=kept.moments[1:])
        return kept if kept.moments else None

    def reading(self, prompt: Prompt, size: int) -> tuple[list[int], Tensor | None]:
        """Token ids of a stream of these moments alone, with the question behind the last, and the frames
        that lie between them, uint8 [frames, 3, size, size]."""
        squares = [
            pad_to_square(moment.picture, size) for moment in self.moments if moment.picture is not None
        ]
        pixels = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2) if squares else None
        return self._ids(prompt), pixels

    def _ids(self, prompt: Prompt) -> list[int]:
        ids, lead, in_frames = [], prompt.start, True
        for moment in self.moments:
            ids += [*lead, *(prompt.frame if moment.picture is not None else [])]
            lead, in_frames = [prompt.interval], True
            if moment.text:
                ids += [*prompt.reply, *prompt.say(moment.text)]
                lead, in_frames = prompt.reopen, False
        return [*ids, *prompt.ask(self.question, after_frame=in_frames)]


def recall(
    journal: JournalReader, model: VideoLLM, question: str, now: float, held: float
) -> Recollection | None:
    """What the journal knows of what a question is about, asked at `now`; None where that is the present, or
    what came since `held`, which the context holds by itself (both in seconds of the journal's clock).

    Raises JournalError where the journal can't be read.
    """
    search = _Search(journal, model)
    words = search.resolved(time_words(question, now))
    words = replace(words, end=min(words.end, now))
    found = search.found(words)
    if words.instant:
        # What had been said by then, and what was to be seen then: a stream that ends there.
        said = journal.narrations(0.0, words.end, latest=True, most=MOST_MOMENTS - 1)
        times = [*(entry.time for entry in said), words.end]
    elif found:
        times = found
    elif words.named or words.order:
        # What came first, or what it came after and the next.
        most = 2 if words.after else 1 if words.order == "first" and not words.named else MOST_MOMENTS
        said = journal.narrations(words.start, words.end, latest=words.order != "first", most=most)
        times = [entry.time for entry in said]
    else:
        times = []
    if not words.named and not (times and _looks_back(question, words, times, held)):
        if held <= now:
            return None
        # Nothing is held: the present is the journal's end.
        said = journal.narrations(0.0, now, latest=True, most=MOST_MOMENTS - 1)
        times = [*(entry.time for entry in said), now]
    moments: dict[float, Moment] = {}
    for time in times:
        if moment := _moment(journal, time):
            moments.setdefault(moment.time, moment)
    if not moments:
        return None
    return Recollection(_as_of_then(words.rest), tuple(moments[time] for time in sorted(moments)))


def _looks_back(question: str, words: TimeWords, times: list[float], held: float) -> bool:
    """Whether a question is about these times, and they are no longer held."""
    present = _PRESENT.search(question) and not _PAST.search(question) and not words.order
    return not present and (times[0] if words.order == "first" else times[-1]) < held


@dataclass(frozen=True)
class _Hits:
    scores: dict[float, float]  # by time
    told: list[float]  # times of sentences with its words, the nearest first
    seen: list[float]  # times of frames that show it, the plainest first


class _Search:
    """Finds times by what was said and seen at them."""

    def __init__(self, journal: JournalReader, model: VideoLLM) -> None:
        self.journal = journal
        self.model = model
        self.space = signature_space(model)

    def resolved(self, words: TimeWords) -> TimeWords:
        """ "Before the cup left" as the stretch that it is, where the journal knows when that was."""
        what = words.before or words.after
        scores = self._hits(what, words.start, words.end).scores if what else {}
        if not scores:
            return words
        # It is there from when it is first told of or seen until it is last.
        then = max(scores) if _GOING.search(what or "") else min(scores)
        if words.before:
            return replace(words, end=then - SAME_SECONDS, instant=True, named=True)
        return replace(words, start=then, order="first", named=True)

    def found(self, words: TimeWords) -> list[float]:
        """Times at which what the question names was told of or seen, the best few or those that come first
        or last, in order of time. They end where it is seen plainest, unless its going is asked for."""
        hits = self._hits(words.rest, words.start, words.end)
        if words.order:
            ordered = sorted(hits.scores)
            return ordered[:MOST_MOMENTS] if words.order == "first" else ordered[-MOST_MOMENTS:]
        best: list[float] = []
        for time in sorted(hits.scores, key=lambda time: -hits.scores[time]):
            if time in hits.told or all(abs(time - other) >= APART_SECONDS for other in best):
                best.append(time)
        best = best[:MOST_MOMENTS]
        plainest = next((time for time in hits.seen if time in best), max(best, default=0.0))
        return sorted(time for time in best if time <= plainest or _GOING.search(words.rest))

    def _hits(self, text: str, start: float, end: float) -> _Hits:
        content = " ".join(word for word in re.findall(r"[\w-]+", text) if word.lower() not in _ASKING)
        if not content:
            return _Hits({}, [], [])
        said = self.journal.search(content, start, end, MOST_HITS)
        told = [
            entry.time for entry in sorted(said, key=lambda entry: (round(entry.distance, 3), -entry.time))
        ]
        seen = self._seen(content, start, end)
        scores: dict[float, float] = defaultdict(float)
        for ranking in (told, seen):
            for rank, time in enumerate(ranking):
                scores[time] += 1 / (FUSION + rank)
        return _Hits(scores, told, seen)

    def _seen(self, content: str, start: float, end: float) -> list[float]:
        """Times of frames that show what is named, the plainest first."""
        weights = question_signature(self.model, content)
        if weights is None:
            return []
        times, shares = self.journal.sights(self.space, weights, start, end)
        (seen,) = (shares >= LEAST_SHARE * FULL).nonzero()
        plainest = seen[np.lexsort((times[seen], -shares[seen]))]
        return times[plainest[:MOST_HITS]].tolist()


def _moment(journal: JournalReader, time: float) -> Moment | None:
    said = journal.narrations(time - SAME_SECONDS, time, latest=True, most=1)
    frame = journal.frame_at(said[0].time if said else time)
    if said:
        there = frame is not None and abs(frame.time - said[0].time) <= SAME_SECONDS
        return Moment(said[0].time, frame.picture if frame and there else None, said[0].text)
    return Moment(frame.time, frame.picture, "") if frame else None


def _as_of_then(question: str) -> str:
    """A question about the past as one of that time's present."""

    def present(past: re.Match[str]) -> str:
        verb = _PRESENT_TENSE[past[0].lower()]
        return verb.capitalize() if past[0][0].isupper() else verb

    return _PAST_TENSE.sub(present, question)
