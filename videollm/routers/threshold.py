"""MoDification (2024): a token runs where its gate g = sigmoid(w x) reaches p, h' = h + g (block(h) - h).

Each token is decided for by itself, so that token by token equals one pass, whatever the chunks.
"""

from __future__ import annotations

from torch import Tensor

from videollm.routers.base import Routing, ScoringRouter

RATE_WEIGHT = 1.0
SOFTNESS = 0.1  # of the step at p from which the share's gradient comes


class ThresholdRouter(ScoringRouter):
    """The paper's load term, alpha F G with the share F of tokens that run and their mean gate G, asks for
    less and less; with little training it is too weak, and a rate term holds the share at `depth.ratio`."""

    fixed = False

    def forward(self, hidden: Tensor, positions: Tensor | None = None) -> Routing:
        gates = self.gates(hidden)  # [frames, tokens]
        kept = gates >= self.depth.threshold
        share = kept.float().mean()
        load = self.depth.load_weight * share * gates.float().mean()
        soft = ((gates.float() - self.depth.threshold) / SOFTNESS).sigmoid().mean()
        rate = share + soft - soft.detach()  # the share itself, with the gradient of the soft step
        always = self.always(kept.shape[1], kept.device)
        return Routing(kept | always, loss=load + RATE_WEIGHT * (rate - self.depth.ratio).square())

    def gates(self, running: Tensor) -> Tensor:
        return self.scores(running).sigmoid()
