"""What a narration is worth: said or not, right or wrong, early or late, or made up.

An event is one happening (a thing appears or leaves). A narration answers the happenings of one moment when
it is said from half a second before it to `WINDOW` seconds after, and before the next moment; whatever
answers none is a false narration, and what one lists beyond as many things as happened is extra. TimeDiff is
VideoLLM-online's: mean seconds early or late.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from stream.frames import Event
from train.compose import Happening
from train.vocabulary import Vocabulary

EARLY = 0.5
WINDOW = 3.0
LISTED = re.compile(r", | and ")  # between things that a narration lists
SHORTEST = 0.1  # seconds that a moment is listened for, however soon the next one comes


def answering(moments: Sequence[float], said: Sequence[float]) -> list[int | None]:
    """Which narration answers each moment, as an index of `said`; both are times in seconds, ascending. The
    first one in time counts, and each answers one moment."""
    free = list(range(len(said)))
    answers: list[int | None] = []
    for index, moment in enumerate(moments):
        following = moments[index + 1] - EARLY if index + 1 < len(moments) else math.inf
        end = max(min(moment + WINDOW, following), moment + SHORTEST)
        answer = next((each for each in free if moment - EARLY <= said[each] < end), None)
        if answer is not None:
            free.remove(answer)
        answers.append(answer)
    return answers


@dataclass
class NarrationScore:
    """Counts over any number of clips; the shares are properties."""

    events: int = 0
    narrated: int = 0
    named: int = 0
    late: float = 0.0
    false: int = 0
    extra: int = 0

    def row(self) -> dict[str, float]:
        events = max(1, self.events)
        return {
            "events": self.events,
            "narrated": self.narrated / events,
            "named": self.named / events,
            "time_diff": self.late / max(1, self.narrated),
            "false": self.false,
            "false_per_event": self.false / events,
            "extra_per_event": self.extra / events,
        }

    def add(self, happenings: tuple[Happening, ...], said: list[Event], vocabulary: Vocabulary) -> None:
        """Score one clip's narrations against what happened in it."""
        moments = sorted({happening.time for happening in happenings})
        narrations = [event for event in said if event.kind == "narration"]
        answers = answering(moments, [event.time for event in narrations])
        for moment, index in zip(moments, answers, strict=True):
            happened = [happening for happening in happenings if happening.time == moment]
            self.events += len(happened)
            if index is None:
                continue
            answer = narrations[index]
            self.extra += max(0, len(LISTED.split(answer.text)) - len(happened))
            for happening in happened:
                self.narrated += 1
                self.late += abs(answer.time - moment)
                self.named += tells(answer.text, happening, vocabulary)
        self.false += len(narrations) - sum(index is not None for index in answers)


def tells(text: str, happening: Happening, vocabulary: Vocabulary) -> bool:
    """Whether a sentence names the thing among what leaves, or among what comes, as it did."""
    leaves, _, comes = text.rpartition("leave")
    return vocabulary.names_thing(leaves if happening.kind == "leaves" else comes, happening.name)
