"""Fused layers compute what those of `transformers` do, alone, beside others and inside mixture-of-depths."""

from __future__ import annotations

import pytest
import torch
from conftest import small_model
from transformers import AutoConfig, AutoModel, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from videollm.cache import StreamCache
from videollm.fused import FusedLayer, fuse
from videollm.layer_budget import LayerBudgetCache
from videollm.packed import Chunk, read


@torch.inference_mode()
def test_streams_read_the_same() -> None:
    model, fused = small_model(), fuse(small_model())
    assert not any(isinstance(module, LlamaDecoderLayer) for module in fused.modules())
    tokens, size = model.config.tokens_per_frame, model.vision_tower.size
    frames = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    frame = [model.config.frame_token_id] * tokens
    steps = [
        [Chunk(0, [5, 6, *frame, 7, *frame], frames), Chunk(1, [9])],
        [Chunk(1, [8, *frame], frames[:1]), Chunk(0, [4, 4, 4])],
    ]
    caches = [LayerBudgetCache(each, 2) for each in (model, fused)]
    for chunks in steps:
        wanted, got = (read(each, chunks, cache) for each, cache in zip((model, fused), caches, strict=True))
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("biased", [False, True])
@torch.inference_mode()
def test_a_sequence_is_the_same(biased: bool) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        vocab_size=100,
        attention_bias=biased,
        mlp_bias=biased,
    )
    decoder = AutoModel.from_config(config, attn_implementation="sdpa").eval()
    for parameter in decoder.parameters():  # biases and norms, too, so that all of them count
        torch.nn.init.normal_(parameter, std=0.1)
    ids = torch.randint(0, 100, (2, 13))
    wanted = decoder(ids, use_cache=False).last_hidden_state
    torch.testing.assert_close(
        fuse(decoder)(ids, use_cache=False).last_hidden_state, wanted, atol=1e-5, rtol=1e-5
    )


def test_layers_of_another_family_stay() -> None:
    config = AutoConfig.for_model(
        "qwen3",
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=9,
    )
    decoder = fuse(AutoModel.from_config(config))
    assert not any(isinstance(module, FusedLayer) for module in decoder.modules())


def test_a_growing_cache_is_refused() -> None:
    model = fuse(small_model())
    with pytest.raises(ValueError, match=r"videollm\.packed\.read"):
        model(torch.tensor([[1, 2]]), past_key_values=StreamCache(model.config.text_config))
