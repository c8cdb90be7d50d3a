"""Models of known shapes with random weights, for measuring speed and memory."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig, PreTrainedConfig

from videollm.configuration import DepthConfig, VideoLLMConfig
from videollm.modeling import VideoLLM

DECODERS: dict[str, dict[str, Any]] = {
    "llama-3-8b": {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
    },
    "smollm2-135m": {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
    },
    "tiny": {
        "vocab_size": 300,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
    },
}


def random_model(
    decoder: str,
    vision: PreTrainedConfig,
    depth: DepthConfig,
    device: torch.device,
    dtype: torch.dtype,
    **fields: Any,
) -> VideoLLM:
    """A model of `DECODERS`, made where it is to lie; `fields` go to its configuration."""
    config = VideoLLMConfig(LlamaConfig(**DECODERS[decoder]), vision, depth_config=depth, **fields)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            return VideoLLM(config).eval()
    finally:
        torch.set_default_dtype(before)
