"""Prepared videos as sequences to train on: parts of streams, each with what is said while it is watched."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from train.data.annotations import AnnotatedVideo, Dialogue, Skipped, Turn
from train.data.dialogue_sequence import dialogue_sequence, frame_range
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
    tokens: int

    def features(self) -> np.ndarray:
        """Float16 [frames, tokens, dim], of its part."""
        frames = frame_range(self.dialogue, self.shards.fps)
        return self.shards.features(self.dialogue.video, frames.start, frames.stop)

    def sequence(self, prompt: Prompt, weights: LossWeights) -> Sequence:
        frames = frame_range(self.dialogue, self.shards.fps)
        return dialogue_sequence(
            prompt, self.dialogue, self.features(), self.shards.fps, weights, first=frames.start
        )


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
        check_fits(shards, config)
        videos = [video for video in shards.annotation if split is None or video.split == split]
        if not videos:
            splits = ", ".join(sorted({video.split or "(none)" for video in shards.annotation}))
            raise ValueError(
                f"{folder} holds no annotated video of split {split!r}; its splits are: {splits}"
            )
        for dialogue in (cut for video in videos for cut in narrated(video, seconds)):
            lesson = _lesson(shards, dialogue, config, prompt, skipped)
            found += [] if lesson is None else [lesson]
    if not found:
        raise ValueError(f"nothing is left to learn from: {skipped}")
    return found


def narrated(video: AnnotatedVideo, seconds: float) -> list[Dialogue]:
    """A video's segments as narrations, each at its beginning, in parts of so many seconds."""
    end = video.duration if video.duration is not None else max(s.start for s in video.segments)
    return [
        Dialogue(
            video.video,
            start,
            min(start + seconds, end),
            tuple(
                Turn(segment.start, "assistant", segment.text)
                for segment in video.segments
                if start <= segment.start < start + seconds
            ),
        )
        for start in np.arange(0, end, seconds).tolist()
    ]


def check_fits(shards: Shards, config: VideoLLMConfig) -> None:
    """ValueError for a folder that was prepared for a model that sees otherwise."""
    asked = config.vision_name, config.vision_config.image_size, config.fps
    if (shards.vision, shards.size, shards.fps) != asked:
        raise ValueError(
            f"{shards.folder} was prepared with {shards.vision} at {shards.size} pixels "
            f"and {shards.fps:g} frames a second, the model sees with {asked[0]} at {asked[1]} and {asked[2]:g}; prepare it anew"
        )


def _lesson(
    shards: Shards, dialogue: Dialogue, config: VideoLLMConfig, prompt: Prompt, skipped: Skipped
) -> Lesson | None:
    frames = frame_range(dialogue, shards.fps)
    count = min(shards.frames(dialogue.video), frames.stop) - frames.start
    try:  # its tokens are known without its features
        blank = np.broadcast_to(np.float16(0), (max(0, count), 1, 1))
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
    return Lesson(shards, dialogue, tokens)


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
