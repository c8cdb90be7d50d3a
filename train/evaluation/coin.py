"""COIN's five tasks: top-1 accuracy of what is said, each step of it taken for the label nearest in edits."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from train.data import coin_tasks
from train.data.coin_tasks import Asked
from train.evaluation.asking import Asker
from train.evaluation.bench import Bench, Row
from train.metrics.labels import nearest_label
from videollm.modeling import VideoLLM

_NUMBER = re.compile(r"^\s*\d+[.)]\s*")


class CoinBench(Bench):
    """One task. Labels are those of all videos in the prepared folder, whatever their split."""

    def __init__(self, model: VideoLLM, folder: Path, split: str | None, task: str) -> None:
        self._asker = Asker(model, folder, split)
        self._labels = coin_tasks.labels(task, self._asker.shards.annotation)
        self._asked: dict[str, list[Asked]] = defaultdict(list)
        for asked in coin_tasks.questions(task, self._asker.videos):
            self._asked[asked.dialogue.video].append(asked)
        self.items = list(self._asked)
        if not self.items:
            raise ValueError(f"{folder} holds no video with steps enough for the task {task!r}")

    def measure(self, item: str) -> Row:
        answered = []
        for asked in self._asked[item]:
            (said,) = self._asker.answers(asked.dialogue)
            right = right_steps(said, asked.steps, self._labels)
            time = asked.dialogue.end
            answered.append({"time": time, "said": said, "true": asked.steps, "right": right})
        return {"answers": answered}

    def summary(self, rows: Sequence[Row]) -> dict[str, float]:
        answers = [answer for row in rows for answer in row["answers"]]
        steps = sum(len(answer["true"]) for answer in answers)
        right = sum(answer["right"] for answer in answers)
        return {"accuracy": 100 * right / steps, "questions": len(answers)}


def right_steps(said: str, steps: Sequence[str], labels: Sequence[str]) -> int:
    """How many of the steps are said in their place. Of one step all that is said is taken, of several a
    line each."""
    lines = (
        [said] if len(steps) == 1 else [_NUMBER.sub("", line) for line in said.splitlines() if line.strip()]
    )
    return sum(labels[nearest_label(line, labels)] == step for line, step in zip(lines, steps, strict=False))
