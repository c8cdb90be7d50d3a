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
        frame_index: Tensor | None = None,
        router_losses: list[Tensor] | None = None,
        packing: Packing | PackedSequences | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """`frame_index` [frames, tokens] says where in the flattened [batch * sequence] each frame's tokens
        lie; None where there is only text. Frames arrive whole. What a router adds to the loss of training is
        appended to `router_losses`. The mask of the dense layers doesn't fit here, because this layer's cache
        holds fewer tokens: it makes its own. Tokens of many streams or sequences, batch 1, come with their
        `packing`. Raises ValueError where rows of a batch keep different numbers of tokens."""
        batch, sequence, dim = hidden_states.shape
        if self.router.depth.routes == "all":
            frame_index = torch.arange(batch * sequence, device=hidden_states.device).view(batch, sequence)
        if frame_index is None:  # text alone: all of it runs
            return self._run(hidden_states, position_embeddings, past_key_values, packing, **kwargs)

        assert position_ids is not None
        positions = position_ids.expand(batch, -1).flatten()[frame_index[:, 0]]  # [frames]
        routing = self.router(hidden_states.flatten(0, 1)[frame_index], positions)
        ones = hidden_states.new_ones(batch * sequence)
        kept = ones.bool().index_put((frame_index,), routing.kept).view(batch, sequence)
        passing = hidden_states
        if routing.skipped_gates is not None:
            scales = torch.where(routing.kept, 1.0, routing.skipped_gates).to(ones.dtype)
            passing = hidden_states * ones.index_put((frame_index,), scales).view(batch, sequence, 1)
        if routing.loss is not None and router_losses is not None:
            router_losses.append(routing.loss)

        frames, tokens = frame_index.shape
        # [batch * running], of the flattened batch
        rows = _places(kept.flatten(), None if routing.k is None else (tokens - routing.k) * frames)
        if batch > 1 and kept.sum(1).unique().numel() > 1:
            raise ValueError(
                "rows of a batch keep different numbers of tokens; pack them into one row (sequence_lengths=)"
            )
        if len(rows) == 0:
            return passing
        running = hidden_states.flatten(0, 1)[rows].view(batch, -1, dim)
        ran = self._run(
            running,
            _select_rotary(position_embeddings, rows, batch),
            past_key_values,
            None if packing is None else packing.select(rows),
            **kwargs,
        )
        gates = self.router.gates(running)  # [batch, running]
        if gates is not None:
            text = ones.bool().index_fill(0, frame_index.flatten(), False)[rows].view_as(gates)
            ran = torch.lerp(running, ran, gates.masked_fill(text, 1)[..., None].to(ran.dtype))
        return passing.flatten(0, 1).index_copy(0, rows, ran.flatten(0, 1)).view_as(passing)

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
        part.expand(batch, -1, -1).flatten(0, 1)[rows].view(batch, -1, part.shape[-1]) for part in embeddings
    )
    return cos, sin
