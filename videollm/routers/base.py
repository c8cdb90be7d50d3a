"""What every router of mixture-of-depths has in common."""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from videollm.configuration import DepthConfig


class Routing(NamedTuple):
    """What a router says of the tokens of frames; every tensor is [frames, tokens]."""

    kept: Tensor
    """Which tokens run (bool)."""
    skipped_gates: Tensor | None = None
    """What scales a token that doesn't run; 1 where None."""
    loss: Tensor | None = None
    """What training adds to its loss, a scalar."""
    k: int | None = None
    """How many of each frame run, where that is known without waiting for the device."""


class Router(nn.Module):
    """Decides which tokens of each frame run in one decoder layer.

    A frame's last token, from which the assistant decides to speak or not, always runs, so that the decision
    has the decoder's whole depth; this is the one thing that no paper asks for. Where `depth.routes` is "all"
    there are no frames, a row of the batch stands for one, and nothing is sure to run.
    """

    positional: ClassVar[bool] = False
    fixed: ClassVar[bool] = True  # whether as many of each frame run, whatever it shows

    def __init__(self, depth: DepthConfig, hidden_size: int, layer_idx: int, num_layers: int) -> None:
        super().__init__()
        self.depth = depth
        self.layer_idx = layer_idx
        self.num_layers = num_layers

    def always(self, tokens: int, device: torch.device) -> Tensor:
        """Which tokens of a frame run whatever their scores, [tokens]."""
        always = torch.zeros(tokens, dtype=torch.bool, device=device)
        if self.depth.routes == "frames":
            always[-1] = True
        return always

    def best(self, scores: Tensor, ratio: float) -> Routing:
        """Let the k = ceil(ratio n) best tokens of each frame run, by scores [frames, tokens]."""
        k = math.ceil(ratio * scores.shape[1])
        ranked = scores.detach().clone()
        if self.depth.routes == "frames":
            ranked[:, -1] = torch.inf
        chosen = ranked.topk(k, dim=1).indices
        return Routing(torch.zeros_like(ranked, dtype=torch.bool).scatter_(1, chosen, True), k=k)

    @classmethod
    def routed_layers(cls, depth: DepthConfig, num_layers: int) -> list[int]:
        """Indices of the layers that route, of a decoder of `num_layers`: as the configuration says, where
        the method doesn't choose them itself."""
        return depth.chosen_layers(num_layers)

    def gates(self, running: Tensor) -> Tensor | None:
        """What scales that which the layer adds to tokens that run, [..., dim] to [...]; 1 where None.

        Apart from `forward`, so that learning keeps nothing of the tokens that skip the layer.
        """
        return None

    def forward(self, hidden: Tensor, positions: Tensor | None = None) -> Routing:
        """Route frames, `hidden` [frames, tokens, dim]; a positional router is told where their first tokens
        stand in the stream, `positions` [frames]."""
        raise TypeError(f"{type(self).__name__} does not say which tokens run")


class ScoringRouter(Router):
    """A router that learns a linear score of a token, without bias."""

    def __init__(self, depth: DepthConfig, hidden_size: int, layer_idx: int, num_layers: int) -> None:
        super().__init__(depth, hidden_size, layer_idx, num_layers)
        self.score = nn.Linear(hidden_size, 1, bias=False)

    def scores(self, hidden: Tensor) -> Tensor:
        """[..., dim] to [...]."""
        return self.score(hidden).squeeze(-1)

    def reset_parameters(self) -> None:
        """Weights before training."""
        nn.init.normal_(self.score.weight, std=0.02)


def evenly_spaced(count: int, among: int) -> list[int]:
    """`count` of the indices below `among`, as far apart as can be, never the first where avoidable."""
    return [int((index + 1) * among / (count + 1)) for index in range(count)]
