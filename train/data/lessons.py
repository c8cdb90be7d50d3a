"""Prepared videos as sequences to train on: parts of streams, each with what is said while it is watched."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from train.data.annotations import AnnotatedVideo, Dialogue, Skipped, Turn
from train.data.dialogue_sequence import dialogue_sequence, frame_index, frame_range
from train.data.shards import Shards
from train.sequences import LossWeights, Sequence
from train.trainer import Stage
from videollm.configuration import VideoLLMConfig
from videollm.prompt import Prompt


@dataclass(frozen=True)
class Lesson:
    """A part of a video, as long as a context holds; its features stay on disk until it is learned."""

    shards: Shards
    dialogue: Dialogue
    frames: range  # of the video
    tokens: int

    def features(self) -> np.ndarray:
        """Float16 [frames, tokens, dim]."""
        return self.shards.features(self.dialogue.video, self.frames.start, self.frames.stop)

    def sequence(self, prompt: Prompt, weights: LossWeights) -> Sequence:
        features, fps = self.features(), self.shards.fps
        return dialogue_sequence(prompt, self.dialogue, features, fps, weights, first=self.frames.start)


def lessons(
    parts: Iterable[tuple[Path, str | None]],
    config: VideoLLMConfig,
    prompt: Prompt,
    seconds: float,
    skipped: Skipped,
) -> list[Lesson]:
    """Those of prepared folders, of one split where it is named, cut into parts of so many seconds. What
    can't be learned from is counted in `skipped`.

    Raises ShardError for a folder that isn't prepared, ValueError for one that was prepared for another
    model, and where nothing is left.
    """
    found = []
    for folder, split in parts:
        shards = Shards(folder)
        _check_fits(shards, config)
        videos = [video for video in shards.annotation if split is None or video.split == split]
        if not videos:
            splits = ", ".join(sorted({video.split or "(none)" for video in shards.annotation}))
            raise ValueError(
                f"{folder} holds no annotated video of split {split!r}; its splits are: {splits}"
            )
        for video in videos:
            for dialogue in narrated(video, shards.frames(video.video), shards.fps, seconds):
                lesson = _lesson(shards, dialogue, config, prompt, skipped)
                found += [] if lesson is None else [lesson]
    if not found:
        raise ValueError(f"nothing is left to learn from: {skipped}")
    return found


def narrated(video: AnnotatedVideo, frames: int, fps: float, seconds: float) -> list[Dialogue]:
    """A video's segments as narrations, each at its beginning, in parts of so many seconds of its `frames`.
    What happens between the last frame of a part and the first of the next one is said in the next."""
    length = max(1, int(seconds * fps))
    turns: dict[int, list[Turn]] = defaultdict(list)
    for segment in video.segments:
        index = min(frame_index(segment.start, fps), frames - 1)
        turns[index // length].append(Turn(segment.start, "assistant", segment.text))
    return [
        Dialogue(video.video, first / fps, (min(first + length, frames) - 1) / fps, tuple(turns[part]))
        for part, first in enumerate(range(0, frames, length))
    ]


def _check_fits(shards: Shards, config: VideoLLMConfig) -> None:
    seen = shards.vision, shards.size, shards.fps
    sees = config.vision_name, config.vision_config.image_size, config.fps
    if seen != sees:
        made, wanted = (f"{name} at {size} pixels, {fps:g} fps" for name, size, fps in (seen, sees))
        raise ValueError(
            f"{shards.folder} was prepared with {made}, the model sees with {wanted}; prepare it anew"
        )


def _lesson(
    shards: Shards, dialogue: Dialogue, config: VideoLLMConfig, prompt: Prompt, skipped: Skipped
) -> Lesson | None:
    asked = frame_range(dialogue, shards.fps)
    frames = range(asked.start, min(asked.stop, shards.frames(dialogue.video)))
    try:  # its tokens are known without its features
        blank = np.broadcast_to(np.float16(0), (len(frames), 1, 1))
        tokens = len(dialogue_sequence(prompt, dialogue, blank, shards.fps, first=frames.start).ids)
    except ValueError as error:
        skipped.add("dialogue that no session could have", str(error))
        return None
    most = config.text_config.max_position_embeddings
    if tokens > most:
        skipped.add(
            f"dialogue of more than the {most} tokens of a context: lower data.seconds", dialogue.video
        )
        return None
    return Lesson(shards, dialogue, frames, tokens)


@dataclass(frozen=True)
class Passes(Stage):
    """Passes over lessons, each in another order, so many sequences a step."""

    lessons: list[Lesson]
    count: int
    prompt: Prompt
    weights: LossWeights

    def sequences(self, step: int, seed: int) -> list[Sequence]:
        first = step * self.count
        chosen = [self._at(index, seed) for index in range(first, first + self.count)]
        return [lesson.sequence(self.prompt, self.weights) for lesson in chosen]

    def _at(self, index: int, seed: int) -> Lesson:
        epoch, place = divmod(index, len(self.lessons))
        rng = np.random.default_rng([seed, epoch, *self.name.encode()])
        return self.lessons[rng.permutation(len(self.lessons))[place]]
