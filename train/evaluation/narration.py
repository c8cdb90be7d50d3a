"""Narration of prepared videos: the four metrics, and what the model says of them by itself."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch

from train.data.annotations import Skipped
from train.data.lessons import Cut, Lesson, lessons
from train.evaluation import dialogues
from train.evaluation.bench import Bench, Row
from train.evaluation.feature_stream import FeatureStream
from train.evaluation.pictures import frame_url
from train.evaluation.plots import kept_plot, timeline_plot
from train.kept import kept_places
from train.metrics.captions import answers_of, caption_scores
from train.metrics.streaming import METRICS, mean_scores
from train.narrating import narrate
from train.recipe import Part
from train.sequences import LossWeights
from videollm.modeling import VideoLLM


class NarrationBench(Bench):
    """Annotated segments as narrations, the videos cut into dialogues of `seconds`.

    Captions are compared by what the model says by itself, each true narration with the one that answers it
    in time; false narrations are those that answer none.
    """

    def __init__(
        self,
        model: VideoLLM,
        folder: Path,
        split: str | None,
        seconds: float,
        threshold: float,
        clips: Path | None,
        skipped: Skipped,
    ) -> None:
        """`clips` is the folder of the videos themselves, to draw kept tokens over a frame."""
        self._clips = clips
        self.stream = FeatureStream(model)
        self.threshold = threshold
        self._lessons: dict[str, list[Lesson]] = defaultdict(list)
        part, cut = Part(folder, split), Cut(seconds)
        for lesson in lessons([part], model.config, self.stream.prompt, cut, skipped):
            if lesson.tokens > model.context:
                skipped.add(
                    "dialogue longer than the model's context: lower --seconds", lesson.dialogue.video
                )
            elif lesson.dialogue.turns:
                self._lessons[lesson.dialogue.video].append(lesson)
        self.items = list(self._lessons)
        if not self.items:
            raise ValueError(f"{folder} holds nothing to narrate; {skipped}")

    def measure(self, item: str) -> Row:
        found = []
        for lesson in self._lessons[item]:
            fps, dialogue = lesson.shards.fps, lesson.dialogue
            sequence = lesson.sequence(self.stream.prompt, LossWeights())
            scores = dialogues.score(self.stream, sequence, fps, self.threshold)
            model = self.stream.model
            features = torch.from_numpy(lesson.features()).to(model.device, model.dtype)
            with kept_places(model) as kept:
                said = narrate(model, self.stream.prompt, features, fps)
            found.append(
                {
                    "start": dialogue.start,
                    "end": dialogue.end,
                    "metrics": mean_scores(scores),
                    "true": [[turn.time, turn.text] for turn in dialogue.turns],
                    "said": [[dialogue.start + event.time, event.text] for event in said],
                    "kept": kept.by_layer(),
                }
            )
        return {"dialogues": found}

    def summary(self, rows: Sequence[Row]) -> dict[str, float]:
        found = [dialogue for row in rows for dialogue in row["dialogues"]]
        figures = {}
        for name in METRICS:
            values = [dialogue["metrics"][name] for dialogue in found if name in dialogue["metrics"]]
            if values:
                figures[name] = sum(values) / len(values)
        true, said, false = [], [], 0
        for dialogue in found:
            answers, unmatched = answers_of(dialogue["true"], dialogue["said"])
            true += [text for _, text in dialogue["true"]]
            said += answers
            false += unmatched
        narrated = sum(bool(text) for text in said) / len(said)
        counts = {"narrated": narrated, "false_per_event": false / len(said), "events": len(said)}
        return figures | counts | caption_scores(said, true)

    def plots(self, item: str, row: Row) -> dict[str, str]:
        found = row["dialogues"]
        true = [tuple(event) for dialogue in found for event in dialogue["true"]]
        said = [tuple(event) for dialogue in found for event in dialogue["said"]]
        pictures = {"timeline": timeline_plot(item, found[0]["start"], found[-1]["end"], true, said)}
        if found[0]["kept"]:
            fps = self._lessons[item][0].shards.fps
            frame = frame_url(self._clips, item, fps) if self._clips else None
            pictures["kept"] = kept_plot(item, found[0]["kept"], frame)
        return pictures
