"""A session that says what a training sequence says, to see whether it reads the same."""

from __future__ import annotations

import torch
from torch import Tensor

from train.sequences import IGNORED, Sequence
from videollm import VideoLLM
from videollm.layer_budget import LayerBudgetCache
from videollm.packed import Chunk


class Rehearsal:
    """In place of a model: says what a training sequence says, and keeps what it was fed."""

    def __init__(self, sequence: Sequence) -> None:
        self.fed: list[int] = []
        self.sequence = sequence

    def read(self, model: VideoLLM, chunks: list[Chunk], cache: LayerBudgetCache, graphs: None) -> Tensor:
        (chunk,) = chunks
        self.fed += chunk.ids
        cache.seen[chunk.slot] += len(chunk.ids)
        logits = torch.zeros(1, 300)
        if (target := self.sequence.targets[len(self.fed) - 1]) != IGNORED:
            logits[0, target] = 100.0
        return logits
