"""Mixture-of-depths: decoder layers through which only a share of a frame's tokens runs.

VideoLLM-MoD (NeurIPS 2024): in such a layer a learned router scores every vision token, within each frame
the k = ceil(r n) best run attention and MLP among themselves, the text and the earlier tokens that ran
here, and what the layer adds to them is scaled by the score, so that the router learns. The others pass on
unchanged and leave no key or value behind. Text always runs.

One thing is ours: a frame's last token, from which the assistant decides to speak or not, is always among
the k, so that the decision has the decoder's whole depth.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import create_causal_mask

from videollm.configuration import DepthConfig


class Router(nn.Module):
    """Scores tokens [..., dim] -> [...]; also says what a score scales the layer's output by."""

    def __init__(self, hidden_size: int, gate: Literal["score", "tanh", "one"]) -> None:
        super().__init__()
        self.score = nn.Linear(hidden_size, 1, bias=False)
        self.gate = gate

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.score(hidden_states).squeeze(-1)
        if self.gate == "score":
            return scores, scores
        if self.gate == "tanh":
            return scores, 1 + 0.2 * scores.tanh()
        return scores, torch.ones_like(scores)


class MixtureOfDepthsLayer(nn.Module):
    """Wraps one decoder layer of a `transformers` model, whatever its family, as `block`."""

    def __init__(
        self, block: nn.Module, config: PreTrainedConfig, layer_idx: int, depth: DepthConfig
    ) -> None:
        super().__init__()
        self.block = block
        self.router = Router(config.hidden_size, depth.gate)
        self.config = config
        self.layer_idx = layer_idx
        self.ratio = depth.ratio

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        past_key_values: Cache | None = None,
        frame_index: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """`frame_index` [frames, tokens] says where in the flattened [batch * sequence] each frame's tokens
        lie; None where there is only text. Frames arrive whole. The mask of the dense layers doesn't fit
        here, because this layer's cache holds fewer tokens: it makes its own."""
        batch, sequence, dim = hidden_states.shape
        kept = torch.ones(batch * sequence, dtype=torch.bool, device=hidden_states.device)
        gates = hidden_states.new_ones(batch * sequence)
        if frame_index is not None:
            scores, frame_gates = self.router(hidden_states.flatten(0, 1)[frame_index])  # [frames, tokens]
            kept[frame_index] = self._select(scores)
            gates = gates.index_put((frame_index,), frame_gates.to(gates.dtype))
        kept, gates = kept.view(batch, sequence), gates.view(batch, sequence)

        index, valid = _kept_first(kept)  # [batch, running]
        if past_key_values is not None and not valid.all():
            raise ValueError("streams that share a cache must hold the same number of frames in a step")
        rows = index[..., None].expand(-1, -1, dim)
        running = hidden_states.gather(1, rows)  # [batch, running, dim]
        out = self.block(
            running,
            attention_mask=create_causal_mask(
                config=self.config,
                inputs_embeds=running,
                attention_mask=None,
                past_key_values=past_key_values,
                layer_idx=self.layer_idx,
            ),
            position_embeddings=_gather_rotary(position_embeddings, index),
            past_key_values=past_key_values,
            **kwargs | {"position_ids": None},
        )
        weight = torch.where(valid, gates.gather(1, index), 0.0)[..., None]
        return hidden_states.scatter(1, rows, running + weight * (out - running))

    def _select(self, scores: Tensor) -> Tensor:
        """Which of a frame's tokens run: [frames, tokens] of scores to a mask of the same shape."""
        k = math.ceil(self.ratio * scores.shape[1])
        ranked = scores.detach().clone()
        ranked[:, -1] = torch.inf
        return torch.zeros_like(ranked, dtype=torch.bool).scatter(1, ranked.topk(k, dim=1).indices, True)


def convert(decoder: PreTrainedModel, depth: DepthConfig) -> PreTrainedModel:
    """Turn a Llama-like decoder (one with `layers`) into a mixture-of-depths one, in place.

    Raises ValueError for a decoder whose attention slides over a window: distances in a layer that skips
    tokens are not those of the stream.
    """
    config = decoder.config
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        raise ValueError(
            "mixture-of-depths needs full attention; set sliding_window=None in the decoder's config"
        )
    layers = decoder.get_submodule("layers")
    if not isinstance(layers, nn.ModuleList):
        raise ValueError(f"{type(decoder).__name__} has no list of decoder layers to convert")
    for index in depth.routed_layers(len(layers)):
        layers[index] = MixtureOfDepthsLayer(layers[index], config, index, depth)
    return decoder


def _kept_first(kept: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of the kept tokens of each row in their order, [batch, most kept], and which of them are kept:
    a row that keeps fewer than another is filled up with skipped tokens, after its own."""
    running = int(kept.sum(1).max())
    index = kept.logical_not().to(torch.uint8).argsort(dim=1, stable=True)[:, :running]
    return index, kept.gather(1, index)


def _gather_rotary(embeddings: tuple[Tensor, Tensor] | None, index: Tensor) -> tuple[Tensor, Tensor] | None:
    """Each kept token keeps its own position: rows of (cos, sin), both [1 or batch, sequence, head_dim]."""
    if embeddings is None:
        return None
    cos, sin = (
        part.expand(index.shape[0], -1, -1).gather(1, index[..., None].expand(-1, -1, part.shape[-1]))
        for part in embeddings
    )
    return cos, sin
