"""What the cache of a long stream takes, reckoned from a decoder's shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig

from videollm.budgets import Budgets
from videollm.configuration import DepthConfig
from videollm.eviction import SnapKVPolicy
from videollm.routers import TopKRouter
from videollm.slab import KnownLengths, SlabLayer, SlabShape


@dataclass(frozen=True)
class Stream:
    """What comes in a second: frames with the interval token behind each, and words now and then."""

    fps: float = 2.0
    tokens_per_frame: int = 10
    words_per_minute: float = 144.0  # tokens of replies: a short sentence every five seconds

    def entries(self, hours: float, frame_share: float = 1.0) -> int:
        """Tokens that run in a layer in so many hours, where of each frame's tokens this share does."""
        frames = round(3600 * hours * self.fps)
        kept = math.ceil(frame_share * self.tokens_per_frame)
        return frames * (kept + 1) + round(60 * hours * self.words_per_minute)


def growing_bytes(config: PreTrainedConfig, entries: Sequence[int], dtype: torch.dtype) -> int:
    """Keys and values where each layer holds so many entries."""
    shape = _shape(config, dtype)
    return 2 * shape.kv_heads * shape.head_dim * dtype.itemsize * sum(entries)


def fixed_bytes(config: PreTrainedConfig, budgets: Budgets, dtype: torch.dtype) -> int:
    """What a `LayerBudgetCache` of these budgets takes for one stream, from beginning to end."""
    lengths, known = (
        torch.zeros(1, dtype=torch.int32, device="meta"),
        KnownLengths.of(len(budgets.entries), 1),
    )
    shape, policy = _shape(config, dtype), SnapKVPolicy()
    return sum(
        SlabLayer(shape, entries + budgets.headroom, lengths, known, index, policy).nbytes
        for index, entries in enumerate(budgets.entries)
    )


def memory(
    config: PreTrainedConfig,
    depth: DepthConfig,
    budget: int,
    hours: float,
    stream: Stream,
    dtype: torch.dtype,
) -> dict[str, int]:
    """Bytes of one stream's cache after so many hours, by way: with every token in every layer and all kept,
    with mixture-of-depths (top-k), with a budget of `budget` entries a layer, and with both.

    With both, layers that route get as much less of the budget as fewer tokens run there, so that they reach
    back as far as the others. ValueError for a budget that the context doesn't allow.
    """
    layers = config.num_hidden_layers
    routed = set(TopKRouter.routed_layers(depth, layers))
    full = stream.entries(hours)
    routed_entries = [
        stream.entries(hours, depth.ratio) if layer in routed else full for layer in range(layers)
    ]
    uniform = Budgets((budget,) * layers)
    uniform.check(config.max_position_embeddings)
    shared = Budgets(tuple(max(uniform.least, round(budget * held / full)) for held in routed_entries))
    return {
        "full": growing_bytes(config, [full] * layers, dtype),
        "mixture-of-depths": growing_bytes(config, routed_entries, dtype),
        "budget": fixed_bytes(config, uniform, dtype),
        "both": fixed_bytes(config, shared, dtype),
    }


def _shape(config: PreTrainedConfig, dtype: torch.dtype) -> SlabShape:
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return SlabShape(1, heads, config.num_key_value_heads, head_dim, dtype, torch.device("meta"))
