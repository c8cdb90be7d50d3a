"""Int8 on the CPU: the decoder's linear layers with weights in a quarter of the bytes, packed once.

A frame is ten tokens. For so few rows a float32 linear layer spends most of its time fetching its weights;
PyTorch's dynamic quantisation (weights int8 per channel, inputs uint8 by their range in each call) takes a
quarter to a fifth of it. Only for inference: gradients don't pass.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from torch import nn
from torch.ao.nn.quantized import dynamic
from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic

from videollm.routers import Router

if TYPE_CHECKING:
    from videollm.modeling import VideoLLM


def quantize_linears(model: VideoLLM) -> VideoLLM:
    """Make the linear layers of the decoder and its head int8, in place; routers, embeddings, connector and
    vision tower stay as they are. The model must lie on the CPU in float32."""
    routers = [name for name, module in model.named_modules() if isinstance(module, Router)]
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and name.startswith(("model.", "lm_head"))
        and not any(name.startswith(f"{router}.") for router in routers)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a move to torchao, whose CPU kernels need a compiler
        quantize_dynamic(model, dict.fromkeys(names, per_channel_dynamic_qconfig), inplace=True)
    return model


def is_quantized(model: VideoLLM) -> bool:
    """Whether `quantize_linears` was here. Rows of one call share the range of their inputs then, so that
    streams that must not depend on each other can't share a call."""
    return isinstance(model.lm_head, dynamic.Linear)
