"""p-MoD (ICCV 2025): top-k whose share falls with depth, with a gate that starts as the identity."""

from __future__ import annotations

import math

from torch import Tensor, nn

from videollm.configuration import DepthConfig
from videollm.routers.base import Routing, ScoringRouter

LEAST = 0.15
ROUTED_BELOW = 0.85


class PModRouter(ScoringRouter):
    """Gate 1 + 0.2 tanh(w x) with w = 0 at the start; tokens that skip the layer are scaled by it, too."""

    @classmethod
    def routed_layers(cls, depth: DepthConfig, num_layers: int) -> list[int]:
        return [index for index in range(num_layers) if kept_share(index, num_layers) <= ROUTED_BELOW]

    def forward(self, hidden: Tensor, positions: Tensor | None = None) -> Routing:
        gates = self.gates(hidden)  # [frames, tokens], rising with the score
        return self.best(gates, kept_share(self.layer_idx, self.num_layers))._replace(skipped_gates=gates)

    def gates(self, running: Tensor) -> Tensor:
        return 1 + 0.2 * self.scores(running).tanh()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.score.weight)


def kept_share(layer_idx: int, num_layers: int) -> float:
    """Share of a frame's tokens that run in a layer: the paper's shifted cosine, never under `LEAST`."""
    return max(math.cos(layer_idx * math.pi / max(1, num_layers - 1)) / 2 + 0.5, LEAST)
