"""Training sequences: token ids, what each position should say next, and its weight.

The layout is the session's own (`videollm.prompt`), so that what is trained is what is run.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import Annotated

import msgspec
import numpy as np
import torch
from torch import Tensor

from train.compose import Happening
from train.features import ClipFeatures
from train.language import TURNS, narration, questions
from videollm.prompt import Prompt

IGNORED = -100
Weight = Annotated[float, msgspec.Meta(ge=0)]
# The model will make mistakes; it learns to go on from some: a narration a frame late, a wrong name said.
LATE_SHARE = 0.15
FRAMES_PER_QUESTION = 7
# Of frames: what tells it of cuts (`stream.cuts`) makes mistakes, too.
CUT_MISTAKEN_SHARE = 0.02


@dataclass
class Sequence:
    ids: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    # One for each frame in reading order: features or logits of the classes, [tokens, dim].
    pictures: list[np.ndarray] = field(default_factory=list)

    def read(self, ids: list[int]) -> None:
        self.ids += ids
        self.targets += [IGNORED] * len(ids)
        self.weights += [0.0] * len(ids)

    def expect(self, token: int, weight: float = 1.0) -> None:
        """What the position read last should say."""
        self.targets[-1], self.weights[-1] = token, weight

    def say(self, token: int, weight: float = 1.0) -> None:
        self.expect(token, weight)
        self.read([token])


class LossWeights(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much each kind of target counts: words, and frame ends at which to keep silent and to speak. Words
    at which a sentence turns (its first and `train.language.TURNS`) count `turns` times as much as others."""

    words: Weight = 1.0
    turns: Weight = 1.0
    silent: Weight = 1.0
    speak: Weight = 1.0


class StreamWriter:
    """Writes a stream's frames and what is said as one sequence, in the order in which a session reads them:
    a frame, the narration behind it if there is one, then questions with their answers."""

    def __init__(self, prompt: Prompt, weights: LossWeights) -> None:
        self.sequence = Sequence()
        self._prompt = prompt
        self._weights = weights
        tokens = prompt.tokenizer(list(TURNS), add_special_tokens=False)["input_ids"]
        self._turns = {ids[0] for ids in tokens}
        self._lead = prompt.start  # what is read before the next frame
        self._in_frames = False  # a bracket of frames is open

    def frame(self, picture: np.ndarray, speaks: bool, cut: bool = False) -> None:
        """A frame, [tokens, dim], at whose end the model should speak or keep silent. Behind a `cut` it is
        marked, but for a stream's first."""
        prompt, weights = self._prompt, self._weights
        marker = prompt.cut if cut and self.sequence.pictures else []
        self.sequence.read([*self._lead, *marker, *prompt.frame])
        self.sequence.pictures.append(picture)
        if speaks:
            self.sequence.expect(prompt.stop, weights.speak)
        else:
            self.sequence.expect(prompt.interval, weights.silent)
        self._lead, self._in_frames = [prompt.interval], True

    def narrate(self, text: str) -> None:
        """Say something of the frame just read."""
        self.sequence.read(self._prompt.reply)
        self._say(text)

    def answer(self, question: str, answer: str) -> None:
        """A question after what was read, and its answer; the first may come before any frame."""
        if not self.sequence.ids:
            self.sequence.read(self._prompt.opening)
        self.sequence.read(self._prompt.ask(question, after_frame=self._in_frames))
        self._say(answer)

    def _say(self, text: str) -> None:
        for number, token in enumerate(self._prompt.say(text)):
            turns = number == 0 or token in self._turns
            self.sequence.say(token, self._weights.words * (self._weights.turns if turns else 1))
        self._lead, self._in_frames = self._prompt.reopen, False


# Frames at which to speak are few beside those at which to keep silent. Most other words are of one template,
# or names that the picture leaves unsure: whether and where a second thing is told hangs on few words.
LESSON_WEIGHTS = LossWeights(speak=2.0, turns=3.0)


def by_frame(happenings: tuple[Happening, ...], fps: float) -> dict[int, list[Happening]]:
    """Happenings of one moment together, by the index of their frame."""
    groups: dict[int, list[Happening]] = defaultdict(list)
    for happening in happenings:
        groups[round(happening.time * fps)].append(happening)
    return groups


def clip_sequence(prompt: Prompt, clip: ClipFeatures, fps: float, rng: np.random.Generator) -> Sequence:
    """The clip, its features logits, as the session would read it, with narrations and a few questions."""
    labels, features = clip.clip, clip.features
    stream = StreamWriter(prompt, LESSON_WEIGHTS)
    happenings = by_frame(labels.happenings, fps)
    count = len(labels.sights)
    asked_at = rng.choice(count, size=max(1, round(count / FRAMES_PER_QUESTION)), replace=False)
    due: list[Happening] = []
    for index in range(count):
        due += happenings.get(index, [])
        cut = any(happening.cut for happening in happenings.get(index, []))
        if rng.random() < CUT_MISTAKEN_SHARE:
            cut = not cut
        stream.frame(features[index], speaks=bool(due), cut=cut)
        if due:
            may_wait = index in happenings and index + 1 < count and index + 1 not in happenings
            if not (may_wait and rng.random() < LATE_SHARE):
                stream.narrate(narration(due))
                due = []
        if index in asked_at:
            options = questions(labels, index, rng)
            if options:
                question = options[rng.integers(len(options))]
                stream.answer(question.text, question.answer)
    return stream.sequence


@dataclass(frozen=True)
class Row:
    """Sequences one after the other, without padding."""

    ids: Tensor  # [1, total]
    targets: Tensor  # [1, total]
    weights: Tensor  # [1, total]
    lengths: list[int]  # of the sequences
    pictures: Tensor  # [frames, tokens, dim]


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
