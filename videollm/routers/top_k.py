"""VideoLLM-MoD (NeurIPS 2024): within each frame the k = ceil(r n) tokens with the best scores run, and what
the layer adds to them is scaled by the score, so that the router learns."""

from __future__ import annotations

from torch import Tensor

from videollm.routers.base import Routing, ScoringRouter


class TopKRouter(ScoringRouter):
    """Top-k per frame; `depth.gate` says how the score scales."""

    def forward(self, hidden: Tensor, positions: Tensor) -> Routing:
        scores = self.scores(hidden)  # [frames, tokens]
        kept = self.best(scores, self.depth.ratio)
        if self.depth.gate == "score":
            return Routing(kept, scores)
        if self.depth.gate == "tanh":
            return Routing(kept, 1 + 0.2 * scores.tanh())
        return Routing(kept)
