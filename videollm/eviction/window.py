"""Sinks and the newest entries alone."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from videollm.eviction.base import EvictionPolicy, Row


@dataclass(frozen=True)
class WindowPolicy(EvictionPolicy):
    """StreamingLLM (Xiao et al., ICLR 2024): the newer, the better. Text has no preference."""

    text_share: float = 0.0

    def scores(self, row: Row) -> Tensor:
        return row.positions.expand(len(row.keys), -1)
