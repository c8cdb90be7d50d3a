"""What the newest queries attend to."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from videollm.eviction.base import EvictionPolicy, Row, attention_of


@dataclass(frozen=True)
class SnapKVPolicy(EvictionPolicy):
    """SnapKV (Li et al., NeurIPS 2024): attention of an observation window of the newest queries, pooled over
    `kernel` neighbouring entries, so that what stays is not torn from what stands around it.

    Heads that share a key head vote by the mean of their attention. Chosen once an overflow.
    """

    observation: int = 32
    kernel: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.observation < 1 or self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(
                f"observation must be at least 1 and kernel odd, got {self.observation} and {self.kernel}"
            )

    @property
    def observed(self) -> int:
        return self.observation

    def scores(self, row: Row) -> Tensor:
        assert row.queries is not None
        given = attention_of(row.queries, row.keys, row.scaling).mean((1, 2))  # [kv_heads, entries]
        return F.avg_pool1d(given, self.kernel, stride=1, padding=self.kernel // 2, count_include_pad=False)
