"""Mixture-of-depths: decoder layers through which only a share of a frame's tokens runs.

VideoLLM-MoD (NeurIPS 2024): in such a layer a router chooses tokens of each frame; they run attention and
MLP among themselves, the text and the earlier tokens that ran here. The others pass on unchanged and leave
no key or value behind. Text always runs, unless `depth.routes` is "all". How a router chooses, and how what
it chose counts, is in `videollm.routers`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import create_causal_mask

from videollm.configuration import DepthConfig
from videollm.places import FramePlaces
from videollm.routers import Router, router_class
from videollm.slab import Packing
from videollm.varlen import PackedSequences


class MixtureOfDepthsLayer(nn.Module):
    """Wraps one decoder layer of a `transformers` model, whatever its family, as `block`."""

    def __init__(self, block: nn.Module, router: Router, config: PreTrainedConfig, layer_idx: int) -> None:
        super().__init__()
        self.block = block
        self.router = router
        self.config = config
        self.layer_idx = layer_idx

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        past_key_values: Cache | None = None,
        position_ids: Tensor | None = None,
        frames: FramePlaces | None = None,
        router_losses: list[Tensor] | None = None,
        packing: Packing | PackedSequences | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """`frames` are None where there is only text. What a router adds to the loss of training is
        appended to `router_losses`. The mask of the dense layers doesn't fit here, because this layer's cache
        holds fewer tokens: it makes its own. Tokens of many streams or sequences, batch 1, come with their
        `packing`. Raises ValueError where rows of a batch keep different numbers of tokens."""
        batch, _, dim = hidden_states.shape
        if self.router.depth.routes == "all":
            frames = _every_token(hidden_states)
        if frames is None:  # text alone: all of it runs
            return self._run(hidden_states, position_embeddings, past_key_values, packing, **kwargs)

        index = frames.index
        flat = hidden_states.flatten(0, 1)  # [batch * sequence, dim]
        positions = None
        if self.router.positional and position_ids is not None:
            positions = position_ids.expand(batch, -1).flatten()[index[:, 0]]  # [frames]
        routing = self.router(flat.index_select(0, index.flatten()).view(*index.shape, dim), positions)
        passing = flat
        if routing.skipped_gates is not None:
            scales = torch.where(routing.kept, 1.0, routing.skipped_gates).to(flat.dtype)
            passing = flat * flat.new_ones(len(flat)).index_put((index,), scales)[:, None]
        if routing.loss is not None and router_losses is not None:
            router_losses.append(routing.loss)

        kept = frames.others.index_put((index,), routing.kept)  # [batch * sequence]
        rows = _places(kept, None if routing.k is None else (index.shape[1] - routing.k) * len(index))
        if batch > 1 and kept.view(batch, -1).sum(1).unique().numel() > 1:
            raise ValueError(
                "rows of a batch keep different numbers of tokens; pack them into one row (sequence_lengths=)"
            )
        if len(rows) == 0:
            return passing.view_as(hidden_states)
        running = flat.index_select(0, rows).view(batch, -1, dim)
        ran = self._run(
            running,
            _select_rotary(position_embeddings, rows, batch),
            past_key_values,
            None if packing is None else packing.select(rows),
            **kwargs,
        )
        gates = self.router.gates(running)  # [batch, running]
        if gates is not None:
            gates = gates.masked_fill(frames.others.index_select(0, rows).view_as(gates), 1)
            ran = torch.lerp(running, ran, gates[..., None].to(ran.dtype))
        return passing.index_copy(0, rows, ran.flatten(0, 1)).view_as(hidden_states)

    def _run(
        self,
        running: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None,
        past_key_values: Cache | None,
        packing: Packing | PackedSequences | None,
        **kwargs: Any,
    ) -> Tensor:
        """Tokens [batch, running, dim] through the block."""
        mask = None
        if packing is None:
            mask = create_causal_mask(
                config=self.config,
                inputs_embeds=running,
                attention_mask=None,
                past_key_values=past_key_values,
                layer_idx=self.layer_idx,
            )
        return self.block(
            running,
            attention_mask=mask,
            position_embeddings=position_embeddings,
            past_key_values=past_key_values,
            position_ids=None,
            packing=packing,
            **kwargs,
        )


def convert(decoder: PreTrainedModel, depth: DepthConfig) -> PreTrainedModel:
    """Turn a Llama-like decoder (one with `layers`) into a mixture-of-depths one, in place.

    Raises ValueError for a router that there is none of, and for a decoder whose attention slides over a
    window: distances in a layer that skips tokens are not those of the stream.
    """
    config = decoder.config
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        raise ValueError(
            "mixture-of-depths needs full attention; set sliding_window=None in the decoder's config"
        )
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise ValueError(f"{type(decoder).__name__} has no list of decoder layers to convert")
    kind = router_class(depth)
    for index in kind.routed_layers(depth, len(layers)):
        router = kind(depth, config.hidden_size, index, len(layers))
        layers[index] = MixtureOfDepthsLayer(layers[index], router, config, index)
    return decoder


def _every_token(hidden_states: Tensor) -> FramePlaces:
    """Each row of a batch [batch, sequence, dim] as if it were a frame."""
    batch, sequence, _ = hidden_states.shape
    index = torch.arange(batch * sequence, device=hidden_states.device)
    return FramePlaces(index.view(batch, sequence), torch.zeros_like(index, dtype=torch.bool))


def _places(kept: Tensor, skipped: int | None) -> Tensor:
    """Where `kept` [total] is true, ascending; a GPU isn't waited for where the number of others is known."""
    if skipped is None:
        return kept.nonzero()[:, 0]
    return kept.nonzero_static(size=len(kept) - skipped)[:, 0]


def _select_rotary(
    embeddings: tuple[Tensor, Tensor] | None, rows: Tensor, batch: int
) -> tuple[Tensor, Tensor] | None:
    """Each kept token keeps its own position: rows of (cos, sin), both [1 or batch, sequence, head_dim]."""
    if embeddings is None:
        return None
    cos, sin = (
        part.expand(batch, -1, -1).flatten(0, 1).index_select(0, rows).view(batch, -1, part.shape[-1])
        for part in embeddings
    )
    return cos, sin
