"""What the cache of a long stream takes is what the caches hold."""

from __future__ import annotations

import pytest
import torch
from conftest import small_model, text_config
from transformers import LlamaConfig

from videollm.budgets import Budgets
from videollm.configuration import DepthConfig
from videollm.layer_budget import LayerBudgetCache
from videollm.packed import Chunk, read
from videollm.shapes import DECODERS
from videollm.stream_memory import Stream, fixed_bytes, memory


@pytest.mark.parametrize("ratio", [0.2, 0.5])
def test_what_grows_is_what_a_stream_fills(ratio: float) -> None:
    model = small_model(ratio=ratio)
    cache = LayerBudgetCache(model)
    stream = Stream(fps=0.5, words_per_minute=15)  # in 40 seconds 20 frames and 10 words
    pixels = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    for index in range(20):
        words = [7] * (1 + index % 2)
        read(model, [Chunk(0, [model.config.frame_token_id] * 10 + words, pixels)], cache)
    ways = memory(model.config.text_config, DepthConfig(ratio=ratio), 100, 40 / 3600, stream, torch.float32)
    assert ways["mixture-of-depths"] == cache.filled_bytes(0)
    assert ways["full"] == 4 * 230 * 2 * 2 * 16 * 4


def test_what_is_fixed_is_what_a_cache_takes() -> None:
    budgets = Budgets((100, 40, 60, 50), headroom=50)
    expected = LayerBudgetCache(small_model(), 1, budgets).nbytes
    assert fixed_bytes(text_config(), budgets, torch.float32) == expected


def test_an_hour_at_llamas_shape() -> None:
    config = LlamaConfig(**DECODERS["llama-3-8b"])
    one, two = (memory(config, DepthConfig(), 1638, hours, Stream(), torch.bfloat16) for hours in (1, 2))
    # 7200 frames of 11 tokens and 8640 words, 128 KiB each; in every second layer 3 of the 11
    assert one["full"] == (7200 * 11 + 8640) * (128 << 10)
    assert one["mixture-of-depths"] == one["full"] - 7200 * 8 * (64 << 10)
    assert two["full"] == 2 * one["full"]
    assert one["both"] < one["budget"] == two["budget"] < one["full"] / 40


def test_both_reach_back_as_far_everywhere() -> None:
    config, stream = LlamaConfig(**DECODERS["llama-3-8b"]), Stream()
    ways = memory(config, DepthConfig(), 2000, 1, stream, torch.bfloat16)
    routed = round(2000 * stream.entries(1, 0.2) / stream.entries(1))
    assert ways["both"] == fixed_bytes(config, Budgets((2000, routed) * 16), torch.bfloat16)
