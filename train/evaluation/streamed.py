"""Questions at moments of videos, answered by a session that has watched up to there and no further."""

from __future__ import annotations

import copy
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from stream.frames import Event
from stream.session import Session
from stream.sources import open_source
from train.data.annotations import Skipped
from train.evaluation.bench import Bench, Row

# A letter that stands for an option: not the article of "A cat", not a part of a word.
_LETTER = re.compile(r"(?<![\w'])([A-Z])(?![\w'])(?!\s+[a-z])")
MOST_PIXELS = 768  # of a side: enough for every vision tower


@dataclass(frozen=True)
class TimedQuestion:
    """A question at a moment of a video. `is_right` judges what was said to it; a question that is to be
    answered by speaking up later is listened for up to `until`, both in seconds."""

    video: str  # its path below the videos' folder
    time: float
    text: str
    category: str
    is_right: Callable[[Sequence[Event]], bool]
    until: float | None = None


class StreamedBench(Bench):
    """Accuracy by category. Each question is asked alone, as if none had been asked before."""

    def __init__(
        self, session: Session, fps: float, folder: Path, questions: Sequence[TimedQuestion], skipped: Skipped
    ) -> None:
        self._session = session
        self._fps = fps
        self._folder = folder
        self._asked: dict[str, list[TimedQuestion]] = defaultdict(list)
        for question in questions:
            if (folder / question.video).is_file():
                self._asked[question.video].append(question)
            else:
                skipped.add("video that is missing", str(folder / question.video))
        self.items = list(self._asked)
        if not self.items:
            raise ValueError(f"none of the questions' videos is in {folder}; {skipped}")

    def measure(self, item: str) -> Row:
        waiting = sorted(self._asked[item], key=lambda question: question.time)
        answered: list[Row] = []
        listening: list[tuple[TimedQuestion, Session, list[Event]]] = []
        self._session.reset()
        with open_source(str(self._folder / item), self._fps, max_side=MOST_PIXELS) as source:
            for frame in source:
                while waiting and waiting[0].time < frame.time:
                    self._ask(waiting.pop(0), answered, listening)
                for question, session, said in listening:
                    if question.until is not None and frame.time <= question.until:
                        said += session.step(frame)
                if not waiting and all(q.until is None or q.until < frame.time for q, _, _ in listening):
                    break
                if waiting:
                    self._session.step(frame)
        for question in waiting:  # at or behind the video's end
            self._ask(question, answered, listening)
        answered += [_row(question, said) for question, _, said in listening]
        return {"answers": answered}

    def _ask(
        self,
        question: TimedQuestion,
        answered: list[Row],
        listening: list[tuple[TimedQuestion, Session, list[Event]]],
    ) -> None:
        """Ask a copy of the session, which goes on where more than an answer is waited for."""
        fork = copy.deepcopy(self._session, {id(self._session.model): self._session.model})
        try:
            fork.ask(question.text, question.time)
        except ValueError as error:  # longer than the context allows: wrong, and the row tells why
            answered.append(_row(question, [Event(question.time, "notice", str(error))]))
            return
        said = fork.finish()
        if question.until is None:
            answered.append(_row(question, said))
        else:
            listening.append((question, fork, said))

    def summary(self, rows: Sequence[Row]) -> dict[str, float]:
        return by_category([answer for row in rows for answer in row["answers"]])


def by_category(answers: Sequence[Row]) -> dict[str, float]:
    """Accuracy of each category, of all questions, and their number."""
    right: dict[str, list[bool]] = defaultdict(list)
    for answer in answers:
        right[answer["category"]].append(answer["right"])
    figures = {category: 100 * sum(of) / len(of) for category, of in sorted(right.items())}
    everything = [answer["right"] for answer in answers]
    return figures | {"all": 100 * sum(everything) / len(everything), "questions": len(everything)}


def _row(question: TimedQuestion, said: Sequence[Event]) -> Row:
    return {
        "category": question.category,
        "time": question.time,
        "asked": question.text,
        "said": [[event.time, event.text] for event in said if event.kind != "question"],
        "right": question.is_right(said),
    }


def answer_of(said: Sequence[Event]) -> str:
    """The text of the answer; empty where there is none."""
    return next((event.text for event in said if event.kind == "answer"), "")


def says_letter(letter: str) -> Callable[[Sequence[Event]], bool]:
    """Whether the first option that the answer names by its letter is this one."""

    def is_right(said: Sequence[Event]) -> bool:
        found = _LETTER.search(answer_of(said))
        return found is not None and found[1] == letter

    return is_right


def choice(question: str, options: Sequence[str]) -> str:
    """A multiple-choice question as it is asked; options come with their letters or without."""
    lettered = [
        option if re.match(r"[A-Z]\.", option) else f"{chr(ord('A') + number)}. {option}"
        for number, option in enumerate(options)
    ]
    return f"{question} {' '.join(lettered)} Answer with the letter alone."
