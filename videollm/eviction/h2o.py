"""What was attended to most so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from videollm.eviction.base import EvictionPolicy, Row


@dataclass(frozen=True)
class H2OPolicy(EvictionPolicy):
    """H2O (Zhang et al., NeurIPS 2023): heavy hitters, by the sum of all attention that an entry ever got.

    The sum takes a second attention in every step, and the lengths of all streams from the device: this one
    is to compare with, not to be fast.
    """

    accumulates: ClassVar[bool] = True

    def scores(self, row: Row) -> Tensor:
        assert row.attention is not None
        return row.attention
