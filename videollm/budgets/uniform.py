"""Every layer keeps the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from videollm.depth_lm import DepthLM


def uniform(model: DepthLM, average: int) -> tuple[int, ...]:
    """`average` entries in every layer."""
    return (average,) * len(model.model.layers)
