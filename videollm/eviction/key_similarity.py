"""Keys that are unlike the others."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from videollm.eviction.base import EvictionPolicy, Row


@dataclass(frozen=True)
class KeySimilarityPolicy(EvictionPolicy):
    """KeyDiff (Park et al., NeurIPS 2025): keys least similar to the mean key stay. It needs no queries."""

    def scores(self, row: Row) -> Tensor:
        directions = F.normalize(row.keys.float(), dim=-1)  # [kv_heads, entries, head_dim]
        return -F.cosine_similarity(directions, directions.mean(1, keepdim=True), dim=-1)
