"""Keys turned from one position to another are the raw keys rotated there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import text_config
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from videollm.rotary import RotaryTable

POSITIONS = 300
TYPES: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 64, "attention_factor": 1.3},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "longrope": {
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "short_factor": [1.0] * 8,
        "long_factor": [float(index + 1) for index in range(8)],
    },
}


def rotary_of(kind: str) -> LlamaRotaryEmbedding:
    parameters = {"rope_type": kind, "rope_theta": 10000.0, **TYPES[kind]}
    return LlamaRotaryEmbedding(text_config(max_position_embeddings=128, rope_parameters=parameters))


@pytest.mark.parametrize("kind", TYPES)
def test_turned_keys_are_raw_keys_rotated_at_the_new_positions(kind: str) -> None:
    torch.manual_seed(0)
    rotary = rotary_of(kind)
    before = {name: buffer.clone() for name, buffer in rotary.named_buffers()}
    table = RotaryTable(rotary, POSITIONS, torch.float32, torch.device("cpu"))
    assert all(torch.equal(before[name], buffer) for name, buffer in rotary.named_buffers())
    raw = torch.randn(1, 2, POSITIONS, 16)
    cos, sin = rotary(raw, torch.arange(POSITIONS)[None])
    places = torch.arange(POSITIONS)
    torch.testing.assert_close(table(places), (cos[0], sin[0]), atol=1e-5, rtol=0)
    _, rotated = apply_rotary_pos_emb(raw, raw, cos, sin)
    old, new = torch.randint(0, POSITIONS, (2, 2, 50))
    keys = torch.stack([rotated[0, head, old[head]] for head in range(2)])
    expected = [rotate_at(raw[0, head, old[head]], cos[0, new[head]], sin[0, new[head]]) for head in range(2)]
    torch.testing.assert_close(table.turn(keys, new - old), torch.stack(expected), atol=2e-4, rtol=0)


def rotate_at(raw: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """[tokens, dim], each at its own position, by the function that decoders use."""
    _, rotated = apply_rotary_pos_emb(raw[None, None], raw[None, None], cos[None], sin[None])
    return rotated[0, 0]


def test_the_mean_of_turns_is_that_of_all_of_them() -> None:
    table = RotaryTable(rotary_of("default"), POSITIONS, torch.float32, torch.device("cpu"))
    states = torch.randn(3, 16)
    turned = torch.stack([table.turn(states, torch.full((3,), by)) for by in range(40)])
    torch.testing.assert_close(table.turn_on_average(states, 40), turned.mean(0), atol=1e-5, rtol=0)
