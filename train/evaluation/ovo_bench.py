"""OVO-Bench (CVPR 2025), `ovo_bench_new.json`: twelve tasks that look back, at the present, or wait.

Format: https://github.com/JoeLeelyf/OVO-Bench. A video's name is a path below the videos' folder.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from stream.frames import Event
from train.data.readers.decoding import decode_file
from train.evaluation.bench import Row
from train.evaluation.streamed import StreamedBench, TimedQuestion, answer_of, choice, says_letter

GROUPS = {
    "backward": ("EPM", "ASI", "HLD"),
    "realtime": ("STU", "OJR", "ATR", "ACR", "OCR", "FPD"),
    "forward": ("REC", "SSR", "CRR"),
}


class Test(msgspec.Struct):
    """A moment at which a task that waits is asked: `type` 1 where the answer is yes, `count` of REC."""

    realtime: float
    type: int = 0
    count: int = 0
    step: str = ""


class Entry(msgspec.Struct):
    task: str
    video: str
    question: str | None = None
    options: list[str] | None = None
    gt: int | None = None  # the right option's index
    realtime: float | None = None
    activity: str = ""
    test_info: list[Test] = []


def read(path: Path) -> list[TimedQuestion]:
    """Every question. ValueError for a file of another format, naming it, and for an entry of an unknown task
    or without what its task needs."""
    questions: list[TimedQuestion] = []
    for number, entry in enumerate(decode_file(path, list[Entry], "OVO-Bench's annotation")):
        try:
            questions += _of_entry(entry)
        except ValueError as error:
            raise ValueError(f"{path}, entry {number}: {error}") from error
    return questions


def _of_entry(entry: Entry) -> list[TimedQuestion]:
    if entry.task in GROUPS["forward"]:
        return [_waiting(entry, test) for test in entry.test_info]
    if entry.task not in (*GROUPS["backward"], *GROUPS["realtime"]):
        raise ValueError(f"there is no task {entry.task!r}")
    question, options, right = entry.question, entry.options, entry.gt
    if question is None or not options or right is None or entry.realtime is None:
        raise ValueError(f"{entry.task} needs question, options, gt and realtime")
    if not 0 <= right < len(options):
        raise ValueError(f"gt is {right}, and there are {len(options)} options")
    text = choice(question, options)
    return [TimedQuestion(entry.video, entry.realtime, text, entry.task, says_letter(chr(ord("A") + right)))]


def _waiting(entry: Entry, test: Test) -> TimedQuestion:
    if entry.task == "REC":
        text = f"How often has anyone done this until now: {entry.activity}? Answer with a number alone."
        return TimedQuestion(entry.video, test.realtime, text, "REC", _says_number(test.count))
    if entry.task == "SSR":
        text = f"Is this step being done now: {test.step}? Answer with yes or no."
    else:
        text = (
            f"Does what was shown until now suffice to answer this: {entry.question} Answer with yes or no."
        )
    return TimedQuestion(entry.video, test.realtime, text, entry.task, _agrees(test.type == 1))


def _says_number(count: int) -> Callable[[Sequence[Event]], bool]:
    return lambda said: "".join(re.findall(r"\d+", answer_of(said))) == str(count)


def _agrees(yes: bool) -> Callable[[Sequence[Event]], bool]:
    said_so = re.compile(r"\W*(yes|y)\b" if yes else r"\W*(no|n)\b", re.IGNORECASE)
    return lambda said: said_so.match(answer_of(said)) is not None


class OvoBench(StreamedBench):
    """Accuracy of tasks; of groups and of all the mean over tasks, as the benchmark's code has it."""

    def summary(self, rows: Sequence[Row]) -> dict[str, float]:
        figures = super().summary(rows)
        questions, tasks = figures.pop("questions"), {k: v for k, v in figures.items() if k != "all"}
        for group, members in GROUPS.items():
            found = [tasks[task] for task in members if task in tasks]
            if found:
                figures[group] = sum(found) / len(found)
        return figures | {"all": sum(tasks.values()) / len(tasks), "questions": questions}
