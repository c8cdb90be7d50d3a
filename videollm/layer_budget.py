"""The key-value cache of many streams, in memory that is fixed when it is made."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache

from videollm.budgets import Budgets
from videollm.eviction import EvictionPolicy, Row, SnapKVPolicy
from videollm.rotary import RotaryTable
from videollm.slab import KnownLengths, Packing, SlabLayer, SlabShape

if TYPE_CHECKING:
    from videollm.depth_lm import DepthLM


def fingerprint(model: DepthLM) -> str:
    """Tells one model from another by its small weights, which int8 leaves as they are: norms and routers."""
    small = [
        p.flatten().float()
        for name, p in model.model.named_parameters()
        if "norm" in name or "router" in name
    ]
    return hashlib.sha256(torch.cat(small).detach().cpu().numpy().tobytes()).hexdigest()[:16]


@dataclass(frozen=True)
class StreamState:
    """All that a cache holds of one stream."""

    layers: list[dict[str, Tensor]]  # of each what `SlabLayer.state` gives
    positions: list[int]  # of its next token in each
    seen: int


class LayerBudgetCache(Cache):
    """Keys and values of `slots` streams of a model: in each decoder layer slabs [slots, kv_heads, capacity,
    head_dim], and how much of each row is filled. Nothing is reallocated while streams come and go.

    A mixture-of-depths layer stores only the tokens that ran in it, so that layers are filled unequally.

    Without budgets the capacity is the model's context, and a stream can read no more. With them it is a
    layer's budget and the headroom: where the tokens of a step might not fit any more into a layer's row, or
    would stand behind the context's last position, the `policy` (SnapKV by default) first chooses what stays,
    down to the budget, and the keys that stay are turned to contiguous positions. So each layer has its own
    next position, and a stream never ends and never leaves the positions that the model was trained on.

    As `past_key_values` of `DepthLM`, rows of the batch are slots.
    """

    layers: list[SlabLayer]  # type: ignore[assignment]

    def __init__(
        self,
        model: DepthLM,
        slots: int = 1,
        budgets: Budgets | None = None,
        policy: EvictionPolicy | None = None,
    ) -> None:
        config, weight = model.config.text_config, model.model.norm.weight
        layers = config.num_hidden_layers
        self.context = model.context
        self.model = fingerprint(model)
        self.budgets = budgets
        self.policy: EvictionPolicy | None = None
        self._rotary: RotaryTable | None = None
        capacities = [self.context] * layers
        if budgets is not None:
            budgets.check(self.context)
            if len(budgets.entries) != layers:
                raise ValueError(f"{len(budgets.entries)} budgets are given for {layers} layers")
            self.policy = policy or SnapKVPolicy()
            if self.policy.observed > budgets.window:
                raise ValueError(
                    f"the policy observes {self.policy.observed} queries, and the newest {budgets.window} "
                    "entries stay; make that window at least as large"
                )
            self._rotary = RotaryTable(model.model.rotary_emb, self.context, weight.dtype, weight.device)
            capacities = [entries + budgets.headroom for entries in budgets.entries]
        shape = SlabShape(
            slots,
            config.num_attention_heads,
            config.num_key_value_heads,
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            weight.dtype,
            weight.device,
        )
        self.lengths = torch.zeros(layers, slots, dtype=torch.int32, device=weight.device)
        self._known = KnownLengths.of(layers, slots)
        self._capacities = np.array(capacities)[:, None]  # [layers, 1]
        # Of each stream's next token in each layer.
        self.positions = np.zeros((layers, slots), dtype=np.int64)
        self.seen = [0] * slots  # how much each stream has read
        self._latest = [0] * slots  # how much of it in the latest step
        self.evictions = [0] * slots  # how often something was evicted from a slot's layers, of any stream
        super().__init__(
            layers=[
                SlabLayer(shape, capacity, lengths, self._known, index, self.policy)
                for index, (capacity, lengths) in enumerate(zip(capacities, self.lengths, strict=True))
            ]
        )

    @property
    def slots(self) -> int:
        return len(self.seen)

    @property
    def evicts(self) -> bool:
        """Whether a stream may go on for ever."""
        return self.budgets is not None

    @property
    def nbytes(self) -> int:
        """Bytes of all slabs, the same from beginning to end."""
        return sum(layer.nbytes for layer in self.layers)

    @property
    def seen_tokens(self) -> int:
        """How much all streams have read. ValueError where that differs."""
        if len(set(self.seen)) > 1:
            raise ValueError(
                f"the streams of this cache have read {self.seen} tokens; a batch needs as many of each"
            )
        return self.seen[0]

    def filled_bytes(self, slot: int) -> int:
        """Bytes that a stream's keys and values fill now."""
        token = 2 * self.layers[0].keys[0, :, 0].nbytes
        return token * int(self.lengths[:, slot].sum())

    def room(self, slot: int) -> int:
        """The most tokens that a stream can read in the next step."""
        return self.context - self.seen[slot] if self.budgets is None else self.budgets.headroom

    @property
    def span(self) -> int:
        """The most tokens that a stream can read before it is full, or before something is evicted."""
        return int(self._capacities.min())

    def begin_step(self, counts: list[int], text: Tensor) -> Packing:
        """Make room for the tokens of a step, so many of each slot; `text` bool [total] says which are words
        and not of a frame. Those of the step before can't be rewound from now on.

        Raises ValueError, and changes nothing, where they don't fit.
        """
        for slot, count in enumerate(counts):
            if count > self.room(slot):
                raise ValueError(self._refusal(slot, count))
        self._settle()
        if self.policy is not None:
            self._make_room(np.array(counts))
        packing = Packing.of(self, counts, text)
        self._latest = list(counts)
        self.seen = [seen + count for seen, count in zip(self.seen, counts, strict=True)]
        self.positions += counts
        return packing

    def rotary(self, packing: Packing) -> tuple[Tensor, Tensor]:
        """Rotary embeddings of a step in an evicting cache, cos and sin [layers, 1, total, head_dim]."""
        assert self._rotary is not None and packing.marks is not None
        return self._rotary(packing.marks[:, None] >> 1)

    def append(self, layer: int, query: Tensor, key: Tensor, value: Tensor, packing: Packing) -> SlabLayer:
        """Store a layer's new tokens of a step, query [total, heads, head_dim], key and value [total,
        kv_heads, head_dim]; the layer with what its slots hold then."""
        slab = self.layers[layer]
        slab.append(query, key, value, packing.marks_in(layer), packing)
        return slab

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """What an unconverted model of `transformers` calls: append to every slot, key and value [slots,
        kv_heads, tokens, head_dim], and give all they hold, [slots, kv_heads, length, head_dim].

        Raises ValueError where they don't fit, and for a cache that evicts.
        """
        tokens = key_states.shape[2]
        if self.evicts:
            raise ValueError("an unconverted model knows nothing of eviction: give its cache no budgets")
        if tokens > self.room(0):
            raise ValueError(self._refusal(0, tokens))
        if layer_idx == len(self.layers) - 1:
            self.seen = [seen + tokens for seen in self.seen]
        return self.layers[layer_idx].update(key_states, value_states)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """How much all streams have read, though a layer may hold less. ValueError where that differs."""
        return self.seen_tokens

    def reset(self, slot: int | None = None) -> None:
        """Forget a stream, or all."""
        for each in range(self.slots) if slot is None else (slot,):
            for layer in self.layers:
                layer.forget(each)
            self.positions[:, each] = 0
            self.seen[each] = self._latest[each] = 0

    def rewind(self, slot: int, tokens: int) -> None:
        """Forget the last `tokens` that a stream read in the latest step, in each layer those that ran.

        Raises ValueError where it read fewer then.
        """
        if tokens > self._latest[slot]:
            raise ValueError(f"{tokens} tokens can't be rewound: the latest step read {self._latest[slot]}")
        left = self._latest[slot] - tokens
        for layer in self.layers:
            layer.rewind(slot, left, self._latest[slot])
        self.positions[:, slot] -= tokens
        self.seen[slot] -= tokens
        self._latest[slot] = left

    def state(self, slot: int) -> StreamState:
        """A copy of all that a slot holds."""
        self.recount()
        layers = [layer.state(slot) for layer in self.layers]
        return StreamState(layers, self.positions[:, slot].tolist(), self.seen[slot])

    def load(self, slot: int, state: StreamState) -> None:
        """Let a slot hold what `state` gave, and nothing else. Nothing of it can be rewound."""
        self.reset(slot)
        for layer, held in zip(self.layers, state.layers, strict=True):
            layer.load(slot, held)
        self.positions[:, slot] = state.positions
        self.seen[slot] = state.seen

    @contextmanager
    def unnoticed(self) -> Iterator[None]:
        """Between the beginning of a step and its layers: the host takes no note of what is appended inside,
        but for each layer's `latest` before the end."""
        filled, exact = self._known.filled.copy(), self._known.exact.copy()
        try:
            yield
        finally:
            self._known.filled[:], self._known.exact[:] = filled, exact
            for layer in self.layers:
                layer.latest = None

    def recount(self) -> None:
        """Let the host know exactly how much each row is filled; on a GPU it waits for it."""
        self._known.filled[:] = self.lengths.cpu().numpy()
        self._known.exact[:] = True

    def rows(self, slot: int) -> Iterator[Row]:
        """What each layer of an evicting cache holds of a stream, as the policy sees it. What was read can't
        be rewound any more."""
        assert self._rotary is not None
        self._settle()
        self.recount()
        for layer in self.layers:
            yield layer.row(slot, self._rotary)

    def evict(self, slot: int) -> None:
        """Go down to the budgets now, before a row is full. What was read can't be rewound any more."""
        self._settle()
        self.recount()
        for layer in range(len(self.layers)):
            self._evict(layer, slot)

    def _settle(self) -> None:
        """The latest step is over."""
        for layer in self.layers:
            layer.settle()
        self._latest = [0] * self.slots

    def _make_room(self, counts: np.ndarray) -> None:
        """Evict in rows that so many tokens of each slot might not fit into."""
        if not self._crowded(counts).any():
            return
        self.recount()
        for layer, slot in np.argwhere(self._crowded(counts)):
            self._evict(int(layer), int(slot))

    def _crowded(self, counts: np.ndarray) -> np.ndarray:
        """Which rows lack room or positions for so many tokens of each slot, bool [layers, slots]."""
        overfull = self._known.filled + counts > self._capacities
        return (overfull | (self.positions + counts > self.context)) & (counts > 0)

    def _evict(self, layer: int, slot: int) -> None:
        """Down to the budget, at contiguous positions; where less is there, only the positions change."""
        assert self.budgets is not None and self.policy is not None and self._rotary is not None
        slab, keep = self.layers[layer], self.budgets.entries[layer]
        row = slab.row(slot, self._rotary)
        index = self.policy.choose(row, keep, self.budgets.sinks, self.budgets.window)
        self.evictions[slot] += index.shape[1] < row.keys.shape[1]
        slab.compact(slot, index, self._rotary)
        self.positions[layer, slot] = index.shape[1]

    def _refusal(self, slot: int, count: int) -> str:
        if self.budgets is None:
            return f"{count} tokens behind {self.seen[slot]} don't fit into a cache of {self.context}"
        return (
            f"{count} tokens are too long a chunk for a headroom of {self.budgets.headroom}; "
            "read them in pieces, or give the budgets more headroom"
        )
