"""What every eviction policy has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from videollm.rotary import RotaryTable


class Row(NamedTuple):
    """What one layer holds of one stream, its entries in the order of time."""

    keys: Tensor  # [kv_heads, entries, head_dim], rotated
    values: Tensor  # [kv_heads, entries, head_dim]
    positions: Tensor  # int32 [entries], at which the keys are rotated
    text: Tensor  # bool [kv_heads, entries], which are words and not of a frame
    queries: Tensor | None  # [heads, observed, head_dim] of the newest entries, rotated, where a policy asks
    attention: Tensor | None  # float32 [kv_heads, entries], which they got so far, where a policy asks
    scaling: float  # of attention scores
    rotary: RotaryTable


@dataclass(frozen=True)
class EvictionPolicy(ABC):
    """Scores the entries of a full row; each KV head keeps its own.

    Sinks and the newest entries stay in any case (`videollm.budgets`). Of the places left, text takes up to a
    `text_share` first, the best of it: what was asked and said is a few words, and one frame is much like
    the next. The others go to the best of what is left, whatever it is.
    """

    text_share: float = 0.5
    accumulates: ClassVar[bool] = False
    """Whether the attention that entries get is summed up."""

    def __post_init__(self) -> None:
        if not 0 <= self.text_share <= 1:
            raise ValueError(f"text_share must be between 0 and 1, got {self.text_share}")

    @property
    def observed(self) -> int:
        """How many of the newest entries' queries are kept; no more than stay in any case."""
        return 0

    @abstractmethod
    def scores(self, row: Row) -> Tensor:
        """How much each entry is worth, [kv_heads, entries]; sinks and newest entries may get anything."""

    def choose(self, row: Row, keep: int, sinks: int, window: int) -> Tensor:
        """Which `keep` entries stay, int64 [kv_heads, keep], ascending; all where there are no more."""
        kv_heads, entries, _ = row.keys.shape
        places = torch.arange(entries, device=row.keys.device).expand(kv_heads, -1)
        if entries <= keep:
            return places
        free = keep - sinks - window
        scores = self.scores(row)[:, sinks : entries - window].float()
        first = int(self.text_share * free)
        best, index = scores.masked_fill(~row.text[:, sinks : entries - window], -torch.inf).topk(first)
        scores = scores.scatter(1, index, torch.where(best > -torch.inf, torch.inf, scores.gather(1, index)))
        chosen = scores.topk(free).indices.sort(1).values + sinks  # [kv_heads, free]
        return torch.cat([places[:, :sinks], chosen, places[:, entries - window :]], 1)


def attention_of(queries: Tensor, keys: Tensor, scaling: float) -> Tensor:
    """Attention of the newest entries over all, causal, float32 [kv_heads, group, queries, entries].

    queries [heads, queries, head_dim] are the newest entries', keys [kv_heads, entries, head_dim]; each
    key head serves a group of heads.
    """
    grouped = queries.unflatten(0, (len(keys), -1))  # [kv_heads, group, queries, head_dim]
    scores = (grouped @ keys.transpose(1, 2)[:, None]).float() * scaling
    count, entries = scores.shape[2:]
    unseen = torch.ones(count, entries, dtype=torch.bool, device=keys.device).triu(entries - count + 1)
    return scores.masked_fill_(unseen, -torch.inf).softmax(-1)
