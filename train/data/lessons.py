"""Prepared videos as sequences to train on: parts of streams, each with what is said while it is watched."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from train.data.annotations import Dialogue, Skipped
from train.data.dialogue_sequence import dialogue_sequence, frame_range
from train.data.dialogues import question_dialogues, read_dialogues
from train.data.shards import Shards
from train.recipe import Part
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


@dataclass(frozen=True)
class Cut:
    """How streams are cut: into parts of so many seconds, in each up to so many questions at random times."""

    seconds: float
    questions: int = 0
    seed: int = 0


def lessons(
    parts: Iterable[Part],
    config: VideoLLMConfig,
    prompt: Prompt,
    cut: Cut,
    skipped: Skipped,
) -> list[Lesson]:
    """Those of prepared folders' parts. What can't be learned from is counted in `skipped`.

    Raises ShardError for a folder that isn't prepared, OSError and ValueError for dialogues that can't be
    read, ValueError for a folder that was prepared for another model, and where nothing is left.
    """
    found = []
    for part in parts:
        shards = Shards(part.folder)
        check_fits(shards, config)
        videos = [video for video in shards.annotation if part.holds(video)]
        if not videos:
            splits = ", ".join(sorted({video.split or "(none)" for video in shards.annotation}))
            raise ValueError(
                f"{part.folder} holds no annotated video of split {part.split!r} and share {part.share}; "
                f"its splits are: {splits}"
            )
        if part.dialogues is None:
            skipped.update(shards.skipped)
            dialogues = question_dialogues(videos, shards.fps, cut.seconds, cut.questions, cut.seed)
        else:
            names = {video.video for video in videos}
            dialogues = [each for each in read_dialogues(part.dialogues) if each.video in names]
        made = (_lesson(shards, dialogue, config, prompt, skipped) for dialogue in dialogues)
        found += [lesson for lesson in made if lesson is not None]
    if not found:
        raise ValueError(f"nothing is left to learn from: {skipped}")
    return found


def check_fits(shards: Shards, config: VideoLLMConfig) -> None:
    """ValueError for a folder that was prepared for a model that sees otherwise."""
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
