"""Int8 on the CPU: the decoder's linear layers with weights in a quarter of the bytes, packed once.

A frame is ten tokens. For so few rows a float32 linear layer spends most of its time fetching its weights;
in int8 (weights per output channel, inputs per token) it takes a fifth to an eighth of it. A token is rounded
by itself, so that it comes out the same in whatever chunk and beside whichever streams it is read. Only for
inference: gradients don't pass.
"""

from __future__ import annotations

import functools
import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from videollm.routers import Router

if TYPE_CHECKING:
    from videollm.modeling import VideoLLM


class Int8Linear(nn.Module):
    """`linear` with int8 weights."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach()
        scales = weight.abs().amax(1).clamp(min=torch.finfo(weight.dtype).tiny) / 127  # [out]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a move to torchao, whose CPU kernels need a compiler
            rounded = torch.quantize_per_channel(
                weight, scales, torch.zeros(len(scales), dtype=torch.int64), 0, torch.qint8
            )
        self.packed = torch.ops.quantized.linear_prepack(rounded, None)
        self.bias = None if linear.bias is None else linear.bias.detach()
        self.steps = 127 if _sums_exactly() else 63  # from zero to a token's largest input

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]."""
        sizes = x.abs().amax(-1, keepdim=True).clamp_(min=torch.finfo(x.dtype).tiny)  # [..., 1]
        rounded = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default(
            x / sizes, 1 / self.steps, self.steps + 1, self.packed
        )
        out = rounded.mul_(sizes)
        return out if self.bias is None else out.add_(self.bias)


def quantize_linears(model: VideoLLM) -> VideoLLM:
    """Make the linear layers of the decoder and its head int8, in place; routers, embeddings, connector and
    vision tower stay as they are. The model must lie on the CPU in float32."""
    for parent in [*model.model.modules(), model]:
        if isinstance(parent, Router):
            continue
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and (parent is not model or name == "lm_head"):
                setattr(parent, name, Int8Linear(child))
    return model


@functools.cache
def _sums_exactly() -> bool:
    """Whether this processor adds up products of bytes without overflow (VNNI). The others need inputs of
    seven bits, half as fine."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_vnni", "avx_vnni", "amx_int8"))
