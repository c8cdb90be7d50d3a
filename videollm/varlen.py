"""Sequences packed into one row without padding, to train on: each attends to itself alone.

What a mixture-of-depths layer leaves out of a row is left out of its sequences, so that the same holds of the
tokens that run there. A mask of the row's tokens by each other is never made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, cast

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers.integrations.sdpa_attention import sdpa_attention_forward


@dataclass(frozen=True)
class PackedSequences:
    """Whose the tokens of a row are: those of a sequence together, without any before them."""

    starts: Tensor  # int32 [sequences + 1], where each sequence's tokens begin
    longest: int  # the most tokens that a sequence has, or more

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> Self:
        """Sequences of so many tokens each."""
        ends = torch.tensor(lengths, device=device).cumsum(0)
        return cls(torch.cat([ends.new_zeros(1), ends]).int(), max(lengths))

    def select(self, index: Tensor) -> PackedSequences:
        """The tokens at `index` [kept] alone, ascending."""
        starts = torch.searchsorted(index, self.starts.long()).int()
        return PackedSequences(starts, min(self.longest, len(index)))


def sequence_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: PackedSequences,
    scaling: float | None = None,
    dropout: float = 0.0,
) -> tuple[Tensor, None]:
    """Causal attention of each sequence's tokens among themselves, with a gradient: query [1, heads, total,
    head_dim], key and value [1, kv_heads, total, head_dim], to [1, total, heads, head_dim].

    One kernel for all sequences on a CUDA device in 16 bits; elsewhere one a sequence, which the CPU is
    fastest with.
    """
    device = query.device.type
    # The kernel doesn't take part in autocast by itself.
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype
    if query.is_cuda and dtype in (torch.float16, torch.bfloat16) and dropout == 0:
        attended = varlen_attn(
            query[0].transpose(0, 1).to(dtype),  # [total, heads, head_dim]
            key[0].transpose(0, 1).to(dtype),
            value[0].transpose(0, 1).to(dtype),
            packing.starts,
            packing.starts,
            packing.longest,
            packing.longest,
            scale=scaling,
            window_size=(-1, 0),
            enable_gqa=True,
        )
        return cast(Tensor, attended)[None], None
    lengths = packing.starts.diff().tolist()
    apart = [
        sdpa_attention_forward(module, q, k, v, None, dropout=dropout, scaling=scaling)[0]
        for q, k, v in zip(
            query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True
        )
        if q.shape[2]
    ]
    return torch.cat(apart, dim=1), None
