"""A composed clip as one training sequence: token ids, what each position should say next, and its weight.

The layout is the session's own (`videollm.prompt`), so that what is trained is what is run.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from train.compose import Happening
from train.features import ClipFeatures
from train.language import narration, questions
from videollm.prompt import Prompt

IGNORED = -100
SPEAK_WEIGHT = 2.0  # frames at which to speak are few beside those at which to keep silent
# The model will make mistakes; it learns to go on from some: a narration a frame late, a wrong name said.
LATE_SHARE = 0.15
FRAMES_PER_QUESTION = 7


@dataclass
class Sequence:
    ids: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    # One for each frame in reading order: logits of the classes, [tokens, classes].
    pictures: list[np.ndarray] = field(default_factory=list)

    def read(self, ids: list[int]) -> None:
        self.ids += ids
        self.targets += [IGNORED] * len(ids)
        self.weights += [0.0] * len(ids)

    def expect(self, token: int, weight: float = 1.0) -> None:
        """What the position read last should say."""
        self.targets[-1], self.weights[-1] = token, weight

    def say(self, ids: list[int]) -> None:
        for token in ids:
            self.expect(token)
            self.read([token])


def by_frame(happenings: tuple[Happening, ...], fps: float) -> dict[int, list[Happening]]:
    """Happenings of one moment together, by the index of their frame."""
    groups: dict[int, list[Happening]] = defaultdict(list)
    for happening in happenings:
        groups[round(happening.time * fps)].append(happening)
    return groups


def clip_sequence(prompt: Prompt, clip: ClipFeatures, fps: float, rng: np.random.Generator) -> Sequence:
    """The clip, its features logits, as the session would read it, with narrations and a few questions."""
    labels, features = clip.clip, clip.features
    sequence = Sequence()
    happenings = by_frame(labels.happenings, fps)
    count = len(labels.sights)
    asked_at = rng.choice(count, size=max(1, round(count / FRAMES_PER_QUESTION)), replace=False)
    due: list[Happening] = []
    lead = prompt.start
    for index in range(count):
        sequence.read([*lead, *prompt.frame])
        sequence.pictures.append(features[index])
        due += happenings.get(index, [])
        lead, in_frames = [prompt.interval], True
        if due:
            sequence.expect(prompt.stop, SPEAK_WEIGHT)
            may_wait = index in happenings and index + 1 < count and index + 1 not in happenings
            if not (may_wait and rng.random() < LATE_SHARE):
                sequence.read(prompt.reply)
                sequence.say(prompt.say(narration(due)))
                due, lead, in_frames = [], prompt.reopen, False
        else:
            sequence.expect(prompt.interval)
        if index in asked_at:
            options = questions(labels, index, rng)
            if options:
                question = options[rng.integers(len(options))]
                sequence.read(prompt.ask(question.text, after_frame=in_frames))
                sequence.say(prompt.say(question.answer))
                lead = prompt.reopen
    return sequence


@dataclass(frozen=True)
class Batch:
    ids: Tensor  # [batch, sequence]
    targets: Tensor  # [batch, sequence]
    weights: Tensor  # [batch, sequence]


def collate(sequences: list[Sequence], padding: int) -> Batch:
    """Sequences padded on the right."""
    longest = max(len(sequence.ids) for sequence in sequences)

    def padded(values: list[list[int]] | list[list[float]], fill: float) -> Tensor:
        return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in values])

    return Batch(
        ids=padded([s.ids for s in sequences], padding).long(),
        targets=padded([s.targets for s in sequences], IGNORED).long(),
        weights=padded([s.weights for s in sequences], 0.0),
    )
