"""What layers need, beside loops that add entry after entry."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from conftest import small_model, text_config
from hypothesis import given, settings
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from videollm import layer_needs
from videollm.eviction import Row
from videollm.layer_budget import LayerBudgetCache
from videollm.layer_needs import attention_entropy, attention_need, measure, measuring_budgets, output_need
from videollm.packed import Chunk, read
from videollm.rotary import RotaryTable

KV_HEADS, HEADS, DIM, WINDOW = 2, 4, 16, 5
ROTARY = RotaryTable(LlamaRotaryEmbedding(text_config()), 10, torch.float32, torch.device("cpu"))


def row(entries: int, sharpness: float, seed: int) -> Row:
    random = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    return Row(
        keys=draw(KV_HEADS, entries, DIM) * sharpness,
        values=draw(KV_HEADS, entries, DIM),
        positions=torch.arange(entries),
        text=torch.ones(KV_HEADS, entries, dtype=torch.bool),
        queries=draw(HEADS, min(WINDOW, entries), DIM),
        attention=None,
        scaling=DIM**-0.5,
        rotary=ROTARY,
    )


def weights_of(full: Row, head: int) -> list[Tensor]:
    """Each query's attention, [entries], by itself."""
    assert full.queries is not None
    entries, queries = full.keys.shape[1], full.queries.shape[1]
    keys = full.keys[head // (HEADS // KV_HEADS)].double()
    weights = []
    for index in range(queries):
        seen = entries - queries + index + 1
        given = (keys[:seen] @ full.queries[head, index].double() * DIM**-0.5).softmax(0)
        weights.append(torch.cat([given, given.new_zeros(entries - seen)]))
    return weights


@given(entries=st.integers(1, 60), sharpness=st.floats(0.1, 6), seed=st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_needs_are_those_of_entries_added_one_by_one(entries: int, sharpness: float, seed: int) -> None:
    full = row(entries, sharpness, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layer_needs, "BLOCK", 7)
        got = attention_need(full), output_need(full)
    attention, output, entropy = [], [], 0.0
    for head in range(HEADS):
        weights = weights_of(full, head)
        values = full.values[head // (HEADS // KV_HEADS)].double()
        mean = sum(weights) / len(weights)
        order = mean.argsort(descending=True).tolist()
        attention.append(next(n for n in range(1, entries + 1) if mean[order[:n]].sum() >= 0.9 - 1e-6))
        for n in range(1, entries + 1):
            kept = order[:n]
            similar = [
                torch.cosine_similarity(given[kept] @ values[kept], given @ values, dim=0)
                for given in weights
            ]
            if sum(similar) / len(similar) >= 0.9 - 1e-6:
                output.append(n)
                break
        entropy += sum(-float(w) * math.log(w) for given in weights for w in given if w > 0) / len(weights)
    assert got[0] == pytest.approx(sum(attention) / HEADS)
    assert got[1] == pytest.approx(sum(output) / HEADS)
    assert attention_entropy(full) == pytest.approx(entropy / HEADS, abs=1e-3)


def test_one_sharp_key_is_all_that_is_needed_and_a_flat_layer_needs_nine_tenths() -> None:
    full = row(200, 0.0, 0)
    assert attention_need(full) == pytest.approx(180, abs=5)
    assert full.queries is not None
    keys = full.keys.clone()
    keys[:, 7] = 100
    sharp = full._replace(keys=keys, queries=torch.ones_like(full.queries))
    assert attention_need(sharp) == output_need(sharp) == 1


def test_a_layer_that_skips_tokens_is_measured_over_what_it_holds() -> None:
    model = small_model(ratio=0.2)
    cache = LayerBudgetCache(model, 1, measuring_budgets(model))
    frame = [model.config.frame_token_id] * 10
    pixels = torch.randint(0, 256, (30, 3, 32, 32), dtype=torch.uint8)
    for index in range(30):
        read(model, [Chunk(0, [*frame, 5], pixels[index : index + 1])], cache)
    needs = measure(cache, 0)
    # Random weights attend to all alike; where a fifth of the frames' tokens ran, no more can be needed.
    assert min(needs.attention[::2]) > 200
    assert max(needs.attention[1::2]) <= 30 * 3 and max(needs.output[1::2]) <= 30 * 3
    made = layer_needs.summarize(model, "tiny", [], 330, [needs, needs])
    assert made.attention == needs.attention and made.tokens == 330
    with pytest.raises(ValueError, match="can't be rewound"):
        cache.rewind(0, 1)


def test_a_layer_that_holds_nothing_needs_one_entry() -> None:
    model = small_model()
    cache = LayerBudgetCache(model, 1, measuring_budgets(model))
    needs = measure(cache, 0)
    assert needs.attention == needs.output == [0.0] * 4
    assert layer_needs.summarize(model, "tiny", [], 0, [needs]).attention == [1.0] * 4
