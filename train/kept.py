"""Which of the frames' tokens each routing layer lets run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from videollm.routers import Router
from videollm.routers.base import Routing


class KeptShares:
    """Sums over all that was routed, by layer."""

    def __init__(self) -> None:
        self._kept: dict[int, Tensor] = {}
        self._routed: dict[int, int] = {}

    def add(self, layer: int, routing: Routing) -> None:
        kept = routing.kept.detach().sum()
        self._kept[layer] = self._kept[layer] + kept if layer in self._kept else kept
        self._routed[layer] = self._routed.get(layer, 0) + routing.kept.numel()

    def by_layer(self) -> dict[int, float]:
        """The share of each routing layer, in their order."""
        return {layer: self._kept[layer].item() / self._routed[layer] for layer in sorted(self._kept)}


class KeptPlaces:
    """In how many of the frames each of their tokens ran, by layer."""

    def __init__(self) -> None:
        self._kept: dict[int, list[Tensor]] = defaultdict(list)

    def add(self, layer: int, routing: Routing) -> None:
        self._kept[layer].append(routing.kept.detach())  # [frames, tokens]

    def by_layer(self) -> dict[int, list[float]]:
        """The share of each token, [tokens], of each routing layer, in their order."""
        return {layer: torch.cat(self._kept[layer]).float().mean(0).tolist() for layer in sorted(self._kept)}


@contextmanager
def kept_shares(model: nn.Module) -> Iterator[KeptShares]:
    """Watches the model's routers."""
    shares = KeptShares()
    with _watched(model, shares.add):
        yield shares


@contextmanager
def kept_places(model: nn.Module) -> Iterator[KeptPlaces]:
    """Watches the model's routers."""
    places = KeptPlaces()
    with _watched(model, places.add):
        yield places


@contextmanager
def _watched(model: nn.Module, told: Callable[[int, Routing], None]) -> Iterator[None]:
    def watch(layer: int, module: nn.Module, inputs: Any, routing: Routing) -> None:
        told(layer, routing)

    hooks = [
        module.register_forward_hook(partial(watch, module.layer_idx))
        for module in model.modules()
        if isinstance(module, Router)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
