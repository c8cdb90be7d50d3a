"""What VideoLLM-MoD compares with: routing that learns nothing.

EarlyExit and LayerSkip run as many layers for a vision token as top-k does on average, by the same `layers`
and `ratio`, so that their compute is alike.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from videollm.configuration import DepthConfig
from videollm.routers.base import Router, Routing, evenly_spaced


class FullRouter(Router):
    """Every token runs in every layer."""

    @classmethod
    def routed_layers(cls, depth: DepthConfig, num_layers: int) -> list[int]:
        return []


class SkippingRouter(Router):
    """Nothing runs but what always does."""

    def forward(self, hidden: Tensor, positions: Tensor | None = None) -> Routing:
        always = self.always(hidden.shape[1], hidden.device)
        return Routing(always.expand(hidden.shape[:2]), k=int(self.depth.routes == "frames"))


class EarlyExitRouter(SkippingRouter):
    """Vision tokens run in the first layers and in none behind them."""

    @classmethod
    def routed_layers(cls, depth: DepthConfig, num_layers: int) -> list[int]:
        return list(range(num_layers - skipped_layers(depth, num_layers), num_layers))


class LayerSkipRouter(SkippingRouter):
    """Vision tokens skip layers that are spread evenly over the decoder."""

    @classmethod
    def routed_layers(cls, depth: DepthConfig, num_layers: int) -> list[int]:
        return evenly_spaced(skipped_layers(depth, num_layers), num_layers)


class UniformRouter(Router):
    """k tokens of a frame run, evenly spaced up to the last."""

    def forward(self, hidden: Tensor, positions: Tensor | None = None) -> Routing:
        frames, tokens, _ = hidden.shape
        k = math.ceil(self.depth.ratio * tokens)
        kept = torch.zeros(frames, tokens, dtype=torch.bool, device=hidden.device)
        kept[:, torch.arange(1, k + 1, device=hidden.device) * tokens // k - 1] = True
        return Routing(kept, k=k)


class RandomRouter(Router):
    """k tokens of a frame run by chance.

    The chance is a hash of position and layer: a stream read in other chunks draws the same.
    """

    positional = True

    def forward(self, hidden: Tensor, positions: Tensor | None = None) -> Routing:
        assert positions is not None
        token = torch.arange(hidden.shape[1], device=hidden.device)
        drawn = _hash(_hash(positions[:, None] + token) + self.layer_idx)  # [frames, tokens]
        return self.best(drawn.double(), self.depth.ratio)


def skipped_layers(depth: DepthConfig, num_layers: int) -> int:
    """How many whole layers a vision token skips under top-k on average."""
    return round(len(depth.chosen_layers(num_layers)) * (1 - depth.ratio))


def _hash(values: Tensor) -> Tensor:
    """A 31-bit integer hash (the finaliser of MurmurHash3, kept positive)."""
    mask = 0x7FFFFFFF
    values = (values.long() + 0x9E3779B) & mask
    values = ((values ^ (values >> 16)) * 0x45D9F3B) & mask
    values = ((values ^ (values >> 13)) * 0x45D9F3B) & mask
    return values ^ (values >> 16)
