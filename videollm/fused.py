"""A Llama layer in few calls: for a frame of ten tokens what is around the arithmetic costs as much as it.

The same numbers as the layer of `transformers` that it is made from, for inference only: projections of the
same input are one linear layer, queries and keys are rotated together, RMSNorm is PyTorch's own, and no
module is called but the linear layers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from videollm.packed import packed_attention
from videollm.rotary import rotate
from videollm.slab import Packing


class FusedLayer(nn.Module):
    """`LlamaDecoderLayer` for packed streams, and for sequences without a cache."""

    def __init__(self, layer: LlamaDecoderLayer) -> None:
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        self.layer_idx = attention.layer_idx
        self.head_dim = attention.head_dim
        self.query_heads: int = attention.config.num_attention_heads
        self.key_heads: int = attention.k_proj.out_features // attention.head_dim
        self.scaling = attention.scaling
        self.num_key_value_groups = attention.num_key_value_groups
        self.qkv_proj = join_linears(attention.q_proj, attention.k_proj, attention.v_proj)
        self.o_proj = attention.o_proj
        self.gate_up_proj = join_linears(mlp.gate_proj, mlp.up_proj)
        self.down_proj = mlp.down_proj
        self.act_fn = mlp.act_fn
        self.attention_norm = layer.input_layernorm.weight
        self.mlp_norm = layer.post_attention_layernorm.weight
        self.eps = layer.input_layernorm.variance_epsilon

    def forward(
        self,
        hidden_states: Tensor,  # [batch, sequence, dim]
        attention_mask: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        packing: Packing | None = None,
        past_key_values: None = None,
        **kwargs: Any,
    ) -> Tensor:
        if past_key_values is not None:
            raise ValueError("a model prepared for inference reads streams: use videollm.packed.read")
        assert position_embeddings is not None
        normed = F.rms_norm(hidden_states, self.attention_norm.shape, self.attention_norm, self.eps)
        projected = self.qkv_proj(normed).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        key_end = self.query_heads + self.key_heads
        cos, sin = (part[:, None] for part in position_embeddings)  # [batch, 1, sequence, head_dim]
        rotated = rotate(projected[:, :key_end], cos, sin)
        attended, _ = packed_attention(
            self,
            rotated[:, : self.query_heads],
            rotated[:, self.query_heads :],
            projected[:, key_end:],
            attention_mask,
            packing,
            self.scaling,
        )
        hidden_states = hidden_states + self.o_proj(attended.flatten(2))
        normed = F.rms_norm(hidden_states, self.mlp_norm.shape, self.mlp_norm, self.eps)
        gate, up = self.gate_up_proj(normed).chunk(2, -1)
        return self.down_proj(self.act_fn(gate).mul_(up)).add_(hidden_states)


def fuse(model: nn.Module) -> nn.Module:
    """Exchange Llama's layers, wrapped ones too, for those of this page, in place; others stay."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is LlamaDecoderLayer:
                setattr(parent, name, FusedLayer(child))
    return model


def join_linears(*linears: nn.Linear) -> nn.Linear:
    """One linear layer with the outputs of several, one behind the other."""
    weight = torch.cat([linear.weight.detach() for linear in linears])
    joined = nn.Linear(weight.shape[1], weight.shape[0], bias=linears[0].bias is not None, device="meta")
    joined.weight = nn.Parameter(weight, requires_grad=False)
    if linears[0].bias is not None:
        joined.bias = nn.Parameter(torch.cat([each.bias.detach() for each in linears]), requires_grad=False)
    return joined
