"""One layer's keys and values of many streams, and whose the tokens of a step are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from videollm.eviction import EvictionPolicy, Row, attention_of

if TYPE_CHECKING:
    from videollm.layer_budget import LayerBudgetCache
    from videollm.rotary import RotaryTable


class SlabShape(NamedTuple):
    """What the slabs of a decoder's layers have in common."""

    slots: int
    heads: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True)
class KnownLengths:
    """What the host knows of the lengths of all layers' rows: they are not above `filled`, int64 [layers,
    slots], and equal to it where `exact`, bool [layers, slots]. Layers look their rows up and keep no views,
    which a copied cache would not share with its layers."""

    filled: np.ndarray
    exact: np.ndarray

    @classmethod
    def of(cls, layers: int, slots: int) -> Self:
        """Of empty rows."""
        return cls(np.zeros((layers, slots), np.int64), np.ones((layers, slots), bool))


class SlabLayer(CacheLayerMixin):
    """Slabs of one decoder layer, [slots, kv_heads, capacity, head_dim], each row filled up to its length,
    its entries in the order of time.

    Where a `policy` evicts, each entry has a mark, twice its position and one more where it is text (int32
    [slots, kv_heads, capacity]; every KV head keeps its own entries, so that only their positions agree), and
    what the policy asks for is kept, too: `queries` of the newest entries, `attention` that entries got.
    """

    def __init__(
        self,
        shape: SlabShape,
        capacity: int,
        lengths: Tensor,
        known: KnownLengths,
        index: int,
        policy: EvictionPolicy | None,
    ) -> None:
        super().__init__()
        slots, heads, kv_heads, head_dim, dtype, device = shape
        self.capacity = capacity
        self.lengths = lengths  # int32 [slots], on the device
        self._known, self._index = known, index
        self.scaling = head_dim**-0.5
        # Not filled with zeros: what a stream hasn't reached costs no memory on the CPU.
        self.keys: Tensor = torch.empty(slots, kv_heads, capacity, head_dim, dtype=dtype, device=device)
        self.values: Tensor = torch.empty_like(self.keys)
        self.marks: Tensor | None = None
        self.queries: Tensor | None = None
        self.attention: Tensor | None = None
        if policy is not None:
            self.marks = torch.empty(slots, kv_heads, capacity, dtype=torch.int32, device=device)
            if policy.observed:
                # A ring, in which an entry's query lies at its place modulo the window; one more place takes
                # what isn't wanted, so that the host needn't know what is.
                self.queries = torch.empty(
                    slots, heads, policy.observed + 1, head_dim, dtype=dtype, device=device
                )
            if policy.accumulates:
                self.attention = torch.empty(slots, kv_heads, capacity, device=device)
        self.is_initialized = True
        self.latest: Stored | None = None

    @property
    def filled(self) -> np.ndarray:
        """What the host knows of the rows' lengths, int64 [slots]."""
        return self._known.filled[self._index]

    @property
    def exact(self) -> np.ndarray:
        """Whether they are equal to that, bool [slots]."""
        return self._known.exact[self._index]

    @property
    def nbytes(self) -> int:
        """Bytes of the slabs."""
        slabs = (self.keys, self.values, self.marks, self.queries, self.attention)
        return sum(slab.nbytes for slab in slabs if slab is not None)

    def append(
        self, query: Tensor, key: Tensor, value: Tensor, marks: Tensor | None, packing: Packing
    ) -> None:
        """Store new tokens behind those that their slots hold, key and value [total, kv_heads, head_dim] with
        their marks int32 [total]; query [total, heads, head_dim] is kept until the next step."""
        slot, total = packing.slot, len(key)
        if slot is not None and self.exact[slot] and not packing.on_device:  # they lie side by side
            first = int(self.filled[slot])
            places = torch.arange(first, first + total, device=key.device)
            self.keys[slot, :, first : first + total] = key.transpose(0, 1)
            self.values[slot, :, first : first + total] = value.transpose(0, 1)
            if self.marks is not None and marks is not None:
                self.marks[slot, :, first : first + total] = marks
        else:
            places = (self.lengths[packing.slots] + packing.offsets).long()
            self.keys[packing.slots, :, places] = key
            self.values[packing.slots, :, places] = value
            if self.marks is not None and marks is not None:
                self.marks[packing.slots, :, places] = marks[:, None]
        if self.attention is not None:
            self.attention[packing.slots, :, places] = 0
        self.lengths += packing.counts
        wanted = self.queries is not None or self.attention is not None
        self.note(Stored(packing, places, query if wanted else None))

    def note(self, stored: Stored) -> None:
        """Let the host know what was stored."""
        self.filled[:] += stored.packing.sizes
        self.exact[:] &= stored.packing.exact
        self.latest = stored

    def settle(self) -> None:
        """The latest step is over: its tokens can't be rewound any more, and their queries count."""
        if self.latest is not None:
            self._count_queries(self.latest, self.queries, self.attention)
        self.latest = None

    def _count_queries(self, latest: Stored, ring: Tensor | None, attention: Tensor | None) -> None:
        """Bring the latest step's queries into `ring` and `attention`, which are shaped as those here."""
        slots, places, queries = latest.packing.slots, latest.places, latest.queries
        if queries is None:
            return
        lengths = self.lengths[slots]  # of rewound tokens, and of forgotten slots, places lie behind
        if ring is not None:
            observed = ring.shape[2] - 1
            newest = (places < lengths) & (places >= lengths - observed)
            ring[slots, :, torch.where(newest, places % observed, observed)] = queries
        if attention is not None:
            stayed, starts = (places < lengths).tolist(), latest.packing.starts.tolist()
            for slot, length in enumerate(self.lengths.tolist()):
                first = starts[slot]
                count = sum(stayed[first : starts[slot + 1]])  # what was rewound is the last of them
                if count:
                    asking = queries[first : first + count].transpose(0, 1)
                    given = attention_of(asking, self.keys[slot, :, :length], self.scaling)
                    attention[slot, :, :length] += given.sum((1, 2))

    def rewind(self, slot: int, begin: int, end: int) -> None:
        """Forget those of the latest step's tokens begin ... end - 1 of a slot, its last, that ran here."""
        if self.latest is None:
            return
        removed = self.latest.packing.among(slot, begin, end)
        self.lengths[slot] -= removed
        if self.lengths.is_cpu:
            self.filled[slot] -= int(removed)
        else:
            self.exact[slot] = False  # `filled` is still not below

    def forget(self, slot: int) -> None:
        """Empty a slot."""
        self.hold(slot, 0)
        if self.latest is not None:  # what the slot will hold must not be taken for what it held
            behind = self.latest.places.masked_fill(self.latest.packing.slots == slot, self.capacity)
            self.latest = self.latest._replace(places=behind)

    def row(self, slot: int, rotary: RotaryTable) -> Row:
        """What a slot holds; `filled` must be exact."""
        length = int(self.filled[slot])
        assert self.marks is not None
        marks = self.marks[slot, :, :length]
        return Row(
            keys=self.keys[slot, :, :length],
            values=self.values[slot, :, :length],
            positions=marks[0] >> 1,
            text=(marks & 1).bool(),
            queries=self.newest_queries(slot),
            attention=None if self.attention is None else self.attention[slot, :, :length],
            scaling=self.scaling,
            rotary=rotary,
        )

    def newest_queries(self, slot: int) -> Tensor | None:
        """Queries of a slot's newest entries in their order, [heads, observed or fewer, head_dim]."""
        return None if self.queries is None else self._in_order(self.queries[slot], int(self.filled[slot]))

    def _in_order(self, ring: Tensor, length: int) -> Tensor:
        """The newest of a ring [heads, observed + 1, head_dim] of a row of that length, oldest first."""
        observed = ring.shape[1] - 1
        return ring[:, torch.arange(max(0, length - observed), length, device=ring.device) % observed]

    def compact(self, slot: int, index: Tensor, rotary: RotaryTable) -> None:
        """Keep the entries of a slot at `index` [kv_heads, kept] alone, ascending, and turn their keys to the
        positions 0, 1, 2, ... The newest entries, as many as queries are kept, must be among them.

        An entry's position only falls, and where it doesn't nothing is rounded: in 16 bits errors add up over
        few turns, however long the stream.
        """
        assert self.marks is not None
        kept, queries = index.shape[1], self.newest_queries(slot)
        marks = self.marks[slot].gather(1, index)  # [kv_heads, kept]
        places = torch.arange(kept, device=index.device)
        shift = (marks >> 1) - places
        rows = index[..., None].expand(-1, -1, self.keys.shape[-1])
        self.keys[slot, :, :kept] = rotary.turn(self.keys[slot].gather(1, rows), -shift)
        self.values[slot, :, :kept] = self.values[slot].gather(1, rows)
        self.marks[slot, :, :kept] = (places << 1) + (marks & 1)
        if self.attention is not None:
            self.attention[slot, :, :kept] = self.attention[slot].gather(1, index)
        if self.queries is not None and queries is not None:
            newest = slice(kept - queries.shape[1], kept)
            turned = rotary.turn(queries, -shift[:1, newest])
            self.queries[slot, :, places[newest] % (self.queries.shape[2] - 1)] = turned
        self.hold(slot, kept)

    def state(self, slot: int) -> dict[str, Tensor]:
        """A copy of all that a slot holds; `filled` must be exact."""
        length = int(self.filled[slot])
        state = {"keys": self.keys[slot, :, :length], "values": self.values[slot, :, :length]}
        if self.marks is not None:
            state["marks"] = self.marks[slot, :, :length]
        queries = None if self.queries is None else self.queries.clone()
        attention = None if self.attention is None else self.attention.clone()
        if self.latest is not None:
            self._count_queries(self.latest, queries, attention)
        if queries is not None:
            state["queries"] = self._in_order(queries[slot], length)
        if attention is not None:
            state["attention"] = attention[slot, :, :length]
        return {name: held.clone(memory_format=torch.contiguous_format) for name, held in state.items()}

    def load(self, slot: int, state: dict[str, Tensor]) -> None:
        """Let a slot hold what `state` gave."""
        self.forget(slot)
        length = state["keys"].shape[1]
        for name in ("keys", "values", "marks", "attention"):
            if name in state:
                getattr(self, name)[slot, :, :length] = state[name]
        if self.queries is not None:
            queries = state["queries"]
            places = torch.arange(length - queries.shape[1], length, device=queries.device)
            self.queries[slot, :, places % (self.queries.shape[2] - 1)] = queries
        self.hold(slot, length)

    def hold(self, slot: int, entries: int) -> None:
        """Say that a slot's first entries are filled."""
        self.lengths[slot] = entries
        self.filled[slot] = entries
        self.exact[slot] = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: the slabs are there from the start."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """See `LayerBudgetCache.update`."""
        first, tokens = self.get_seq_length(), key_states.shape[2]
        self.keys[:, :, first : first + tokens] = key_states
        self.values[:, :, first : first + tokens] = value_states
        self.lengths += tokens
        self.filled[:] += tokens
        return self.keys[:, :, : first + tokens], self.values[:, :, : first + tokens]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        """Entries of every slot. ValueError where they differ."""
        if not self.exact.all() or (self.filled != self.filled[0]).any():
            raise ValueError("the streams of this cache hold unequal numbers of entries")
        return int(self.filled[0])

    def get_max_length(self) -> int:
        return self.capacity


class Stored(NamedTuple):
    """What a layer stored in the latest step."""

    packing: Packing
    places: Tensor  # int64 [total], where in their rows
    queries: Tensor | None  # [total, heads, head_dim], where the policy wants them


@dataclass(frozen=True)
class Packing:
    """Tokens of many streams in one sequence without padding: those of a slot together, slots in order."""

    cache: LayerBudgetCache
    slots: Tensor  # int64 [total], each token's
    starts: Tensor  # int32 [slots + 1], where each slot's tokens begin; a slot may have none
    sizes: np.ndarray  # int64 [slots], how many tokens each slot has, or more; the host knows it
    exact: bool = True  # whether not more
    positions: Tensor | None = None  # int64 [total], each token's in its stream, of a whole step
    marks: Tensor | None = None  # int32 [layers, total], of a whole step where a cache evicts: `SlabLayer`
    whole: Packing | None = None  # the step's tokens, where these are not all of them
    index: Tensor | None = None  # int64 [total], where each of these stands among them, ascending
    on_device: bool = False  # whether nothing that the host knows may decide where tokens are stored

    @classmethod
    def of(cls, cache: LayerBudgetCache, counts: list[int], text: Tensor) -> Self:
        """The next tokens of each slot, so many; `text` bool [total] where they are words."""
        device = cache.lengths.device
        # [layers + 2, slots]: a copy to a GPU costs the same for all as for one
        facts = torch.from_numpy(np.vstack([counts, cache.seen, cache.positions])).to(device)
        sizes, seen, nexts = facts[0], facts[1], facts[2:]
        starts = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]).int()
        slots = torch.arange(len(counts), device=device).repeat_interleave(sizes, output_size=sum(counts))
        offsets = torch.arange(len(slots), device=device) - starts[slots]
        marks = (((nexts[:, slots] + offsets) << 1) + text).int() if cache.evicts else None
        return cls(cache, slots, starts, np.array(counts), positions=seen[slots] + offsets, marks=marks)

    @cached_property
    def longest(self) -> int:
        """The most tokens that a slot has, or more."""
        return int(self.sizes.max())

    @cached_property
    def slot(self) -> int | None:
        """The only slot that has tokens, None where several have."""
        (slots,) = self.sizes.nonzero()
        return int(slots[0]) if len(slots) == 1 else None

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
        sizes, exact = self._sizes_among(len(index))
        if not exact and starts.is_cpu and not self.on_device:
            sizes, exact = starts.diff().numpy(), True
        return Packing(
            self.cache,
            self.slots[index],
            starts,
            sizes,
            exact,
            whole=self,
            index=index,
            on_device=self.on_device,
        )

    def again(self, step: Packing) -> Packing:
        """The same choice of tokens of a later step of the same shape."""
        if self.index is None:
            return step
        sizes, exact = step._sizes_among(len(self.index))
        return replace(self, sizes=sizes, exact=exact, whole=step)

    def _sizes_among(self, kept: int) -> tuple[np.ndarray, bool]:
        """How many tokens each slot has, or more, where so many of all are kept; whether not more."""
        if self.slot is not None:
            return np.where(self.sizes, kept, 0), True
        return self.sizes.clip(max=kept), False

    def marks_in(self, layer: int) -> Tensor | None:
        """The marks of these tokens in a layer, int32 [total]."""
        marks = (self.whole or self).marks
        if marks is None or self.index is None:
            return None if marks is None else marks[layer]
        return marks[layer, self.index]

    def among(self, slot: int, begin: int, end: int) -> Tensor:
        """How many of these are among the tokens begin ... end - 1 of a slot in the whole step, a scalar."""
        places = torch.arange(len(self.slots), device=self.slots.device) if self.index is None else self.index
        first = (self.whole or self).starts[slot]
        return ((places >= first + begin) & (places < first + end)).sum()
