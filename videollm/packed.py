"""A step of many streams at once: what each reads goes through the vision tower and the decoder as one batch.

The decoder's layers are run as they are. Their attention goes through the attention interface of
`transformers` to `kernels.attend`, over each stream's own cache, so that streams of any length, frames of
some and replies of others share a step, and nothing is padded.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from kernels.attend import attend
from videollm.layer_budget import LayerBudgetCache
from videollm.places import FramePlaces
from videollm.slab import Packing
from videollm.varlen import PackedSequences, sequence_attention

if TYPE_CHECKING:
    from videollm.depth_lm import DepthLM
    from videollm.modeling import VideoLLM
    from videollm.step_graphs import StepGraphs

ATTENTION = "videollm"


class Chunk(NamedTuple):
    """What one stream reads in a step: token ids, with frames (uint8 [frames, 3, size, size]) in the places
    of `config.frame_token_id`. What comes next is asked after each of so many tokens, `ends`, or after
    all of them."""

    slot: int
    ids: list[int]
    pixels: Tensor | None = None
    ends: tuple[int, ...] | None = None

    @property
    def asked(self) -> tuple[int, ...]:
        """After how many of its tokens it is asked what comes next."""
        return (len(self.ids),) if self.ends is None else self.ends


@dataclass(frozen=True)
class Step:
    """All that the decoder's layers read in a step beside their weights and the cache."""

    hidden: Tensor  # [1, total, dim]
    rotary: tuple[Tensor, Tensor]  # cos and sin [layers, 1, total, head_dim], or [1, ...] for all layers
    frames: FramePlaces | None
    packing: Packing


@torch.inference_mode()
def read(
    model: VideoLLM, chunks: list[Chunk], cache: LayerBudgetCache, graphs: StepGraphs | None = None
) -> Tensor:
    """Next-token logits after the ends of each chunk, float32 [ends of all chunks, vocabulary].

    `graphs` are of this model and this cache; without them the layers are called one by one.

    Raises ValueError for chunks that don't fit into the cache, for two of one slot, and for a model whose
    layers were given another attention than `ATTENTION`.
    """
    if len({chunk.slot for chunk in chunks}) < len(chunks):
        raise ValueError("a stream can read one chunk a step, not two")
    if not all(chunk.ids for chunk in chunks):
        raise ValueError("a chunk without tokens can't be read")
    device = cache.lengths.device
    counts = [0] * cache.slots
    for chunk in chunks:
        counts[chunk.slot] = len(chunk.ids)
    by_slot = sorted(chunks, key=lambda chunk: chunk.slot)
    ids = torch.tensor([[token for chunk in by_slot for token in chunk.ids]], device=device)  # [1, total]
    pixels = [chunk.pixels for chunk in by_slot if chunk.pixels is not None]
    frames = model.encode_frames(torch.cat(pixels).to(device)) if pixels else None
    hidden, places = model.embed(ids, frames)  # [1, total, dim]
    hidden = decode(model, hidden, places, cache, counts, model.is_text(ids[0]), graphs)
    starts = [0, *accumulate(counts)]
    rows = [starts[c.slot] + end - 1 for c in chunks for end in c.asked]
    return model.lm_head(model.model.norm(hidden[0, rows])).float()


def decode(
    model: DepthLM,
    hidden: Tensor,
    frames: FramePlaces | None,
    cache: LayerBudgetCache,
    counts: list[int],
    text: Tensor,
    graphs: StepGraphs | None = None,
) -> Tensor:
    """Packed tokens [1, total, dim], so many of each slot, through the decoder's layers, not its last norm.

    `text` bool [total] says which are words. Raises ValueError for tokens that don't fit into the cache.
    """
    _check(model)
    packing = cache.begin_step(counts, text)
    assert packing.positions is not None
    if cache.evicts:
        cos, sin = cache.rotary(packing)  # [layers, 1, total, head_dim]
    else:
        cos, sin = (part[None] for part in model.model.rotary_emb(hidden, packing.positions[None]))
    step = Step(hidden, (cos, sin), frames, packing)
    return run_layers(model, step) if graphs is None else graphs.run(step)


def run_layers(model: DepthLM, step: Step) -> Tensor:
    """A step through the decoder's layers one by one, [1, total, dim]; nothing waits for the device unless a
    router does."""
    hidden, (cos, sin), packing = step.hidden, step.rotary, step.packing
    assert packing.positions is not None
    layers = model.model.layers
    rotary = (part.expand(len(layers), -1, -1, -1).unbind() for part in (cos, sin))
    for layer, *embeddings in zip(layers, *rotary, strict=True):
        hidden = layer(
            hidden,
            attention_mask=None,
            position_ids=packing.positions[None],
            position_embeddings=tuple(embeddings),
            frames=step.frames,
            packing=packing,
        )
    return hidden


def _check(model: DepthLM) -> None:
    if model.config.text_config._attn_implementation != ATTENTION:
        raise ValueError(f'streams need attn_implementation="{ATTENTION}", the default')
    depth = model.config.depth_config
    if depth.routes == "all" and depth.router not in ("full", "threshold"):
        raise ValueError(f"a stream can't be routed by {depth.router} over all tokens: its future is unknown")


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packing: Packing | PackedSequences | None = None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of packed tokens, [1, heads, total, head_dim], over their streams' caches, to which it adds
    them, or over their sequences; without a packing what `transformers` calls "sdpa"."""
    if isinstance(packing, PackedSequences):
        dropout = kwargs.get("dropout", 0.0)
        return sequence_attention(module, query, key, value, packing, scaling, dropout)
    if packing is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    query = query[0].transpose(0, 1)  # [total, heads, head_dim]
    slab = packing.cache.append(
        int(module.layer_idx),  # type: ignore[arg-type]
        query,
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        packing,
    )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = attend(query, slab.keys, slab.values, slab.lengths, packing.starts, packing.longest, scale)
    return out[None], None


AttentionInterface.register(ATTENTION, packed_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
