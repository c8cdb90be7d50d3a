"""The four metrics of a dialogue, teacher-forced: it is read turn by turn, as a stream."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from train.evaluation.feature_stream import FeatureStream
from train.metrics import streaming
from train.metrics.streaming import TurnScore
from train.sequences import IGNORED, Sequence
from videollm.prompt import Prompt

NONE = torch.zeros(0, dtype=torch.bool)  # no frame ends


@dataclass(frozen=True)
class Turn:
    """What is read up to the end of one reply: `frames`, up to the last of the turn's frames, and `reply`."""

    frames: list[int]
    reply: list[int]
    pictures: list[np.ndarray]  # [tokens, dim], of its frames
    targets: list[int]  # of `frames` and `reply` together


def turns_of(sequence: Sequence, prompt: Prompt) -> tuple[list[Turn], list[np.ndarray]]:
    """The turns of a sequence, and its frames behind the last."""
    turns, start, shown, size = [], 0, 0, len(prompt.frame)
    for stop in (index + 1 for index, token in enumerate(sequence.ids) if token == prompt.eos):
        ids, targets = sequence.ids[start:stop], sequence.targets[start:stop]
        inside = [index for index, token in enumerate(ids) if token == prompt.frame[0]]
        middle, count = (inside[-1] + 1 if inside else 0), len(inside) // size
        turns.append(Turn(ids[:middle], ids[middle:], sequence.pictures[shown : shown + count], targets))
        start, shown = stop, shown + count
    return turns, sequence.pictures[shown:]


def score(stream: FeatureStream, sequence: Sequence, fps: float, threshold: float) -> list[TurnScore]:
    """Every turn's metrics.

    A model that keeps silent where it should speak is shown the frames that follow, as if nothing had been
    said, one fewer than the turn's own, to see how late it speaks: early and late are looked for equally far.
    ValueError for a sequence that the context has no room for.
    """
    interval, scores, tokens = stream.prompt.interval, [], len(sequence.ids)
    if tokens > stream.cache.context:
        raise ValueError(f"a dialogue of {tokens} tokens, and the model's context has {stream.cache.context}")
    turns, rest = turns_of(sequence, stream.prompt)
    stream.reset()
    following = [turn.pictures for turn in turns[1:]] + [rest]
    for turn, upcoming in zip(turns, following, strict=True):
        targets = torch.tensor(turn.targets)
        at_frames, at_words = targets.tensor_split([len(turn.frames)])
        ends, words = ((part != IGNORED).nonzero().flatten() for part in (at_frames, at_words))
        spoke, later, narrates = NONE, NONE, False
        if turn.frames:
            logits = stream.read(turn.frames, turn.pictures, ends)
            spoke = streaming.speaks(logits, interval, threshold)
            narrates = len(ends) > 0 and int(at_frames[ends[-1]]) != interval
            if narrates and not spoke.any():
                later = _look(stream, upcoming[: len(turn.pictures) - 1], threshold)
        logits = stream.read(turn.reply, (), words)
        scores.append(_score(logits, at_words[words], spoke, later, narrates, fps))
    return scores


def _look(stream: FeatureStream, pictures: list[np.ndarray], threshold: float) -> Tensor:
    """At which of these further frames the model would speak, bool [frames]; they are forgotten again."""
    prompt = stream.prompt
    room = max(0, stream.room) // (1 + len(prompt.frame))
    pictures = pictures[:room]
    if not pictures:
        return NONE
    ids = [prompt.interval, *prompt.frame] * len(pictures)
    logits = stream.read(ids, pictures, stream.frame_ends(ids))
    stream.rewind(len(ids))
    return streaming.speaks(logits, prompt.interval, threshold)


def _score(
    logits: Tensor, targets: Tensor, spoke: Tensor, later: Tensor, narrates: bool, fps: float
) -> TurnScore:
    words = len(targets)
    if not words:
        return TurnScore()
    right = streaming.leading_right(logits, targets)
    off = streaming.frames_off(spoke, later) if narrates else None
    fluency = None
    if off is not None:
        fluency = streaming.narration_fluency(off, len(spoke), right, words)
    elif len(spoke):
        fluency = streaming.answer_fluency(spoke, right, words)
    return TurnScore(
        lm_ppl=streaming.perplexity(logits, targets),
        time_diff=None if off is None else abs(off) / fps,
        fluency=fluency,
        lm_correctness=right / words,
    )
