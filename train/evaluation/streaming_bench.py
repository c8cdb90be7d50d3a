"""StreamingBench (2024), `questions_*.json`: multiple choice at a moment, and being told later, unasked.

Format: https://github.com/THUNLP-MT/StreamingBench. Videos are taken by their file's name, whatever folder
the annotation names. Questions about earlier answers (`questions_sqa.json`) are asked alone, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath

import msgspec

from stream.frames import Event
from train.data.readers.decoding import decode_file
from train.evaluation.streamed import TimedQuestion, choice, says_letter

TOLERANCE = 2.0  # seconds early or late that count as told in time
LISTENED = 60.0  # seconds that are listened for from the question on, or to the true moment and its tolerance


class Question(msgspec.Struct):
    task_type: str
    question: str
    time_stamp: str  # hours:minutes:seconds
    answer: str = ""
    options: list[str] = []
    ground_truth_time_stamp: str | None = None


class Part(msgspec.Struct):
    """A stretch of a video with its questions."""

    video_path: str
    questions: list[Question]


def read(path: Path) -> list[TimedQuestion]:
    """Every question. ValueError for a file of another format, naming it."""
    found = decode_file(path, list[Part | list[Part]], "StreamingBench's questions")
    parts = [part for entry in found for part in (entry if isinstance(entry, list) else [entry])]
    try:
        return [question for part in parts for question in _of_part(part)]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _of_part(part: Part) -> Iterable[TimedQuestion]:
    video = PurePosixPath(part.video_path).name
    for question in part.questions:
        time = seconds(question.time_stamp)
        if question.ground_truth_time_stamp is not None:
            true = seconds(question.ground_truth_time_stamp)
            until = max(true + TOLERANCE, time + LISTENED)
            yield TimedQuestion(video, time, question.question, question.task_type, _tells(true), until)
            continue
        letter = question.answer.strip()[:1]
        if not question.options or not letter.isalpha():
            raise ValueError(f"{question.question!r} at {question.time_stamp} lacks options or the right one")
        text = choice(question.question, question.options)
        yield TimedQuestion(video, time, text, question.task_type, says_letter(letter))


def _tells(true: float) -> Callable[[Sequence[Event]], bool]:
    """Whether the first thing said after the answer comes in time."""

    def is_right(said: Sequence[Event]) -> bool:
        first = next((event for event in said if event.kind == "narration"), None)
        return first is not None and abs(first.time - true) <= TOLERANCE

    return is_right


def seconds(stamp: str) -> float:
    """Seconds of "00:03:10", "03:10" or "10". ValueError for anything else."""
    try:
        parts = [float(part) for part in stamp.strip().split(":")]
    except ValueError:
        parts = []
    if not 1 <= len(parts) <= 3:
        raise ValueError(f"{stamp!r} is no moment; it is written as 00:03:10")
    return sum(part * 60**power for power, part in enumerate(reversed(parts)))
