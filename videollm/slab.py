"""The key-value cache of many streams, and whose the tokens of a step are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor
from transformers import PreTrainedConfig


class SlabCache:
    """Keys and values of `slots` streams: in each decoder layer a slab [slots, kv_heads, capacity, head_dim]
    and how much of each row is filled. Nothing is reallocated while streams come and go.

    A mixture-of-depths layer stores only the tokens that ran in it, so that layers are filled unequally;
    `seen` counts what each stream has read, and gives its next token its position.
    """

    def __init__(
        self, config: PreTrainedConfig, slots: int, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = slots, config.num_key_value_heads, capacity, head_dim
        layers = range(config.num_hidden_layers)
        self.capacity = capacity
        # Not filled with zeros: what a stream hasn't reached costs no memory on the CPU.
        self.keys = [torch.empty(shape, dtype=dtype, device=device) for _ in layers]
        self.values = [torch.empty(shape, dtype=dtype, device=device) for _ in layers]
        self.lengths = torch.zeros(len(layers), slots, dtype=torch.int32, device=device)
        self.seen = [0] * slots
        self._latest: dict[int, Packing] = {}  # what each layer stored in the latest step

    @property
    def slots(self) -> int:
        return len(self.seen)

    def begin_step(self) -> None:
        """What is stored from now on is of a new step."""
        self._latest.clear()

    def append(self, layer: int, key: Tensor, value: Tensor, packing: Packing) -> None:
        """Store new tokens, key and value [total, kv_heads, head_dim], behind those that their slots hold."""
        places = self.lengths[layer][packing.slots] + packing.offsets
        self.keys[layer][packing.slots, :, places] = key
        self.values[layer][packing.slots, :, places] = value
        self.lengths[layer] += packing.counts
        self._latest[layer] = packing

    def reset(self, slot: int) -> None:
        """Forget a stream."""
        self.lengths[:, slot] = 0
        self.seen[slot] = 0

    def rewind(self, slot: int, tokens: int) -> None:
        """Forget the last `tokens` that a stream read in the latest step, in each layer those that ran."""
        for layer, packing in self._latest.items():
            self.lengths[layer, slot] -= packing.among_last(slot, tokens)
        self.seen[slot] -= tokens

    def take(self, slot: int) -> Taken:
        """A copy of what a stream holds, and its slot empty."""
        lengths = self.lengths[:, slot].tolist()
        keys, values = (
            [slab[slot, :, :length].clone() for slab, length in zip(slabs, lengths, strict=True)]
            for slabs in (self.keys, self.values)
        )
        taken = Taken(keys, values, self.seen[slot])
        self.reset(slot)
        return taken

    def give_back(self, slot: int, taken: Taken) -> None:
        """Let a slot hold what was taken from it, and nothing else."""
        for slabs, stored in ((self.keys, taken.keys), (self.values, taken.values)):
            for slab, tensor in zip(slabs, stored, strict=True):
                slab[slot, :, : tensor.shape[1]] = tensor
        self.lengths[:, slot] = torch.tensor([tensor.shape[1] for tensor in taken.keys])
        self.seen[slot] = taken.seen

    def nbytes(self, slot: int) -> int:
        """Bytes that a stream's keys and values fill now."""
        token = 2 * self.keys[0][0, :, 0].nbytes
        return token * int(self.lengths[:, slot].sum())


@dataclass(frozen=True)
class Taken:
    """What a stream held: keys and values of each layer, [kv_heads, length, head_dim]."""

    keys: list[Tensor]
    values: list[Tensor]
    seen: int


@dataclass(frozen=True)
class Packing:
    """Tokens of many streams in one sequence without padding: those of a slot together, slots in order."""

    cache: SlabCache
    slots: Tensor  # int64 [total], each token's
    starts: Tensor  # int32 [slots + 1], where each slot's tokens begin; a slot may have none
    longest: int  # the most tokens that a slot has, or more
    whole: Packing | None = None  # the step's tokens, where these are not all of them
    index: Tensor | None = None  # int64 [total], where each of these stands among them, ascending

    @classmethod
    def of(cls, cache: SlabCache, counts: list[int]) -> Self:
        """So many tokens of each slot."""
        device = cache.lengths.device
        sizes = torch.tensor(counts, device=device)
        starts = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]).int()
        return cls(
            cache, torch.arange(len(counts), device=device).repeat_interleave(sizes), starts, max(counts)
        )

    @cached_property
    def offsets(self) -> Tensor:
        """How many tokens of its slot come before each, int64 [total]."""
        return torch.arange(len(self.slots), device=self.slots.device) - self.starts[self.slots]

    @cached_property
    def counts(self) -> Tensor:
        """How many tokens each slot has, int32 [slots]."""
        return self.starts.diff()

    def select(self, index: Tensor) -> Packing:
        """The tokens at `index` [kept] alone, ascending, of all of a step's."""
        starts = torch.searchsorted(index, self.starts.long()).int()
        return Packing(self.cache, self.slots[index], starts, min(self.longest, len(index)), self, index)

    def among_last(self, slot: int, tokens: int) -> Tensor:
        """How many of these are among the last `tokens` that a slot has in the whole step, a scalar."""
        places = torch.arange(len(self.slots), device=self.slots.device) if self.index is None else self.index
        end = (self.whole or self).starts[slot + 1]
        return ((places >= end - tokens) & (places < end)).sum()
