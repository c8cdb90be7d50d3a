"""Routers of mixture-of-depths by name: which tokens of a frame run in a layer, and how they count."""

from __future__ import annotations

from videollm.configuration import DepthConfig
from videollm.routers.base import Router, Routing, ScoringRouter
from videollm.routers.baselines import (
    EarlyExitRouter,
    FullRouter,
    LayerSkipRouter,
    RandomRouter,
    UniformRouter,
)
from videollm.routers.p_mod import PModRouter
from videollm.routers.threshold import ThresholdRouter
from videollm.routers.top_k import TopKRouter

__all__ = ["ROUTERS", "Router", "Routing", "ScoringRouter", "router_class"]

ROUTERS: dict[str, type[Router]] = {
    "top_k": TopKRouter,
    "threshold": ThresholdRouter,
    "p_mod": PModRouter,
    "full": FullRouter,
    "early_exit": EarlyExitRouter,
    "layer_skip": LayerSkipRouter,
    "random": RandomRouter,
    "uniform": UniformRouter,
}


def router_class(depth: DepthConfig) -> type[Router]:
    """The router that a configuration names. ValueError for a name that there is none of."""
    if depth.router not in ROUTERS:
        raise ValueError(f"there is no router {depth.router!r}; there are {', '.join(ROUTERS)}")
    return ROUTERS[depth.router]
