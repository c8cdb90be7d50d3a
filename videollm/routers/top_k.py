"""VideoLLM-MoD (NeurIPS 2024): within each frame the k = ceil(r n) tokens with the best scores run, and what
the layer adds to them is scaled by the score, so that the router learns."""

from __future__ import annotations

import torch
from torch import Tensor

from videollm.routers.base import Routing, ScoringRouter


class TopKRouter(ScoringRouter):
    """Top-k per frame; `depth.gate` says how the score scales."""

    def forward(self, hidden: Tensor, positions: Tensor | None = None) -> Routing:
        with torch.no_grad():  # only the scores of tokens that run are learned from
            return self.best(self.scores(hidden), self.depth.ratio)

    def gates(self, running: Tensor) -> Tensor | None:
        if self.depth.gate == "score":
            return self.scores(running)
        if self.depth.gate == "tanh":
            return 1 + 0.2 * self.scores(running).tanh()
        return None
