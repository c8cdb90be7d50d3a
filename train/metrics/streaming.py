"""VideoLLM-online's metrics of a streaming dialogue (CVPR 2024, section 4.1), turn by turn.

A turn is all that is read up to the end of one reply: frames, a question perhaps, the reply. Everything is
teacher-forced: a turn is judged behind the true turns before it. Over turns, then over dialogues, metrics are
means. Definitions follow the authors' evaluator where the paper leaves room, with two differences: the words
`Assistant:` are the layout's here and never the model's, so they count nowhere; and frames before a question
have no moment at which to speak, so that such a turn has no TimeDiff.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F


def perplexity(logits: Tensor, targets: Tensor) -> float:
    """LM-PPL of one reply: exp of the mean cross-entropy of its tokens, [words, vocabulary] and [words]."""
    return math.exp(F.cross_entropy(logits.float(), targets).item())


def leading_right(logits: Tensor, targets: Tensor) -> int:
    """How many tokens of a reply are right before the first wrong one, [words, vocabulary] and [words]."""
    return int((logits.argmax(-1) == targets).long().cumprod(0).sum())


def speaks(logits: Tensor, interval: int, threshold: float) -> Tensor:
    """At which frame ends a model would speak, bool [frames], by logits [frames, vocabulary]: where silence
    (the interval token) is less probable than the threshold or than another token."""
    silence = logits.float().softmax(-1)[:, interval]
    return (silence < threshold) | (logits.argmax(-1) != interval)


def frames_off(spoke: Tensor, later: Tensor) -> int:
    """How many frames early (positive) or late (negative) a model speaks that should at the last frame.

    `spoke`, bool [frames], are the turn's frame ends; `later`, bool [look], those that follow where nothing
    has been said. A model that is silent at all of them counts as late by all of `later`.
    """
    if spoke.any():
        return len(spoke) - 1 - int(spoke.long().argmax())
    return -(int(later.long().argmax()) + 1 if later.any() else len(later))


def narration_fluency(off: int, frames: int, right: int, words: int) -> float:
    """Share of a narration's turn that is right up to the first mistake, of `frames` frame ends and `words`
    tokens, `right` of which are right before a wrong one.

    The authors' evaluator counts the frame end at which a model speaks too early among the right ones, and
    that at which it should have spoken not.
    """
    if off == 0:
        return (frames + right) / (frames + words)
    return (frames - off if off > 0 else frames - 1) / (frames + words)


def answer_fluency(spoke: Tensor, right: int, words: int) -> float:
    """The same of an answer, before which all frame ends, `spoke` bool [frames], should be silent."""
    silent = int((~spoke).long().cumprod(0).sum())
    return (silent + (right if silent == len(spoke) else 0)) / (len(spoke) + words)


@dataclass(frozen=True)
class TurnScore:
    """What one turn scores; None where it has nothing to measure it by."""

    lm_ppl: float | None = None
    time_diff: float | None = None  # seconds
    fluency: float | None = None
    lm_correctness: float | None = None


METRICS = ("lm_ppl", "time_diff", "fluency", "lm_correctness")


def mean_scores(turns: Sequence[TurnScore]) -> dict[str, float]:
    """Each metric's mean over the turns that have it."""
    values = {name: [v for turn in turns if (v := getattr(turn, name)) is not None] for name in METRICS}
    return {name: sum(of) / len(of) for name, of in values.items() if of}
