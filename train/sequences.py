"""A composed clip as one training sequence: token ids, what each position should say next, and its weight.

The layout is the session's own (`videollm.prompt`), so that what is trained is what is run.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace

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
class Row:
    """Sequences one after the other, without padding."""

    ids: Tensor  # [1, total]
    targets: Tensor  # [1, total]
    weights: Tensor  # [1, total]
    lengths: list[int]  # of the sequences
    pictures: Tensor  # [frames, tokens, classes]


def pack(sequences: list[Sequence], device: torch.device) -> Row:
    return Row(
        ids=torch.tensor([[token for s in sequences for token in s.ids]], device=device),
        targets=torch.tensor([[token for s in sequences for token in s.targets]], device=device),
        weights=torch.tensor([[weight for s in sequences for weight in s.weights]], device=device),
        lengths=[len(s.ids) for s in sequences],
        pictures=torch.from_numpy(np.stack([p for s in sequences for p in s.pictures])).float().to(device),
    )


def deal(sequences: list[Sequence], rows: int) -> list[list[Sequence]]:
    """The sequences in so many rows of about one length. Where there are fewer sequences, each further row is
    one that is read and not learned from, so that every process has something to run."""
    dealt: list[list[Sequence]] = [[] for _ in range(rows)]
    for sequence in sorted(sequences, key=lambda s: len(s.ids), reverse=True):
        min(dealt, key=lambda row: sum(len(s.ids) for s in row)).append(sequence)
    unlearned = replace(sequences[0], weights=[0.0] * len(sequences[0].weights))
    return [row or [unlearned] for row in dealt]
