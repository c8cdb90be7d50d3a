"""Shows a model a part of a prepared video, asks, and hears the answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from train.data.annotations import AnnotatedVideo, Dialogue
from train.data.dialogue_sequence import frame_range
from train.data.lessons import check_fits
from train.data.shards import Shards
from train.evaluation.feature_stream import FeatureStream
from videollm.modeling import VideoLLM

ANSWER_TOKENS = 256  # a numbered list of twenty actions and more


class Asker:
    """A model, a prepared folder, and its videos of one split; ValueError where they don't fit each other."""

    def __init__(self, model: VideoLLM, folder: Path, split: str | None) -> None:
        self.stream = FeatureStream(model)
        self.shards = Shards(folder)
        check_fits(self.shards, model.config)
        self.videos = of_split(self.shards, split)

    def answers(self, dialogue: Dialogue, count: int = 1, seed: int = 0) -> list[str]:
        """What the model answers to the dialogue's question behind its frames: greedily at first, then drawn
        from what it would say. Of frames that the context has no room for, the last remain."""
        stream, prompt = self.stream, self.stream.prompt
        words = prompt.ask(dialogue.turns[0].text, after_frame=True)
        room = stream.cache.context - len(prompt.start) - len(words) - ANSWER_TOKENS
        features = self._features(dialogue)[-max(1, room // (1 + len(prompt.frame))) :]
        ids = list(prompt.start)
        for index in range(len(features)):
            ids += [*([prompt.interval] if index else []), *prompt.frame]
        ids += words
        stream.reset()
        logits = stream.read(ids, features, torch.tensor([len(ids) - 1]))  # [1, vocabulary]
        asked = stream.cache.state(0)
        draw = torch.Generator().manual_seed(seed)
        answers = []
        for number in range(count):
            if number:
                stream.cache.load(0, asked)
            said = stream.say(logits, ANSWER_TOKENS, draw if number else None)
            answers.append(stream.text(said))
        return answers

    def _features(self, dialogue: Dialogue) -> np.ndarray:
        """Those of the dialogue's part, float16 [frames, tokens, dim]; of a part shorter than a frame one."""
        frames = frame_range(dialogue, self.shards.fps)
        first = min(frames.start, self.shards.frames(dialogue.video) - 1)
        return self.shards.features(dialogue.video, first, max(frames.stop, first + 1))


def of_split(shards: Shards, split: str | None) -> list[AnnotatedVideo]:
    """The annotated videos of a split, or all. ValueError where there are none."""
    videos = [video for video in shards.annotation if split is None or video.split == split]
    if not videos:
        splits = ", ".join(sorted({video.split or "(none)" for video in shards.annotation}))
        raise ValueError(f"{shards.folder} holds no annotated video of split {split!r}; its splits: {splits}")
    return videos
