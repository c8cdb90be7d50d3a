"""Policies beside their formulas, written out; what stays in any case, and the place that text has."""

from __future__ import annotations

import pytest
import torch
from conftest import text_config
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from videollm.eviction import (
    POLICIES,
    ExpectedAttentionPolicy,
    Row,
    SnapKVPolicy,
    WindowPolicy,
    policy_named,
)
from videollm.rotary import RotaryTable

KV_HEADS, HEADS, DIM = 2, 6, 16
ROTARY = RotaryTable(LlamaRotaryEmbedding(text_config()), 600, torch.float32, torch.device("cpu"))


def row(entries: int, observed: int, text: float = 0.3, seed: int = 0) -> Row:
    random = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    gaps = torch.randint(1, 4, (entries,), generator=random)
    return Row(
        keys=draw(KV_HEADS, entries, DIM),
        values=draw(KV_HEADS, entries, DIM),
        positions=gaps.cumsum(0).int(),
        text=torch.rand(KV_HEADS, entries, generator=random) < text,
        queries=draw(HEADS, observed, DIM),
        attention=draw(KV_HEADS, entries).abs(),
        scaling=DIM**-0.5,
        rotary=ROTARY,
    )


@given(
    name=st.sampled_from(list(POLICIES)),
    entries=st.integers(40, 120),
    keep=st.integers(40, 90),
    sinks=st.integers(0, 5),
    text=st.floats(0, 1),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_sinks_and_the_newest_stay_in_the_order_of_time(
    name: str, entries: int, keep: int, sinks: int, text: float, seed: int
) -> None:
    kept = policy_named(name).choose(row(entries, 32, text, seed), keep, sinks, 32)
    assert kept.shape == (KV_HEADS, min(keep, entries))
    assert (kept.diff(dim=1) > 0).all() and kept.min() >= 0 and kept.max() < entries
    for head in kept.tolist():
        assert set(range(sinks)) | set(range(entries - 32, entries)) <= set(head)


@given(share=st.floats(0, 1), text=st.floats(0, 1), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_text_comes_first_up_to_its_share(share: float, text: float, seed: int) -> None:
    full = row(100, 16, text, seed)
    kept = SnapKVPolicy(text_share=share, observation=16).choose(full, 50, 4, 16)
    plain = SnapKVPolicy(text_share=0.0, observation=16).choose(full, 50, 4, 16)
    for head in range(KV_HEADS):
        middle = full.text[head, 4:84]
        least = min(int(share * 30), int(middle.sum()))
        among = [index for index in kept[head].tolist() if 4 <= index < 84]
        assert len(among) == 30
        text_kept = sum(bool(full.text[head, index]) for index in among)
        by_score = sum(bool(full.text[head, i]) for i in plain[head].tolist() if 4 <= i < 84)
        assert text_kept >= least and text_kept >= by_score
        # The preference ends at the share: beyond it text has no more than its scores bring.
        assert text_kept <= max(least + by_score, least)


def test_snapkv_is_the_pooled_attention_of_the_observation_window() -> None:
    full = row(50, 8)
    assert full.queries is not None
    given_attention = torch.zeros(KV_HEADS, 50)
    for head in range(HEADS):
        key_head = head // (HEADS // KV_HEADS)
        for index in range(8):
            seen = 50 - 8 + index + 1
            scores = full.keys[key_head, :seen] @ full.queries[head, index] * DIM**-0.5
            given_attention[key_head, :seen] += scores.softmax(0) / (8 * HEADS // KV_HEADS)
    pooled = torch.stack([given_attention[:, max(0, i - 2) : i + 3].mean(1) for i in range(50)], 1)
    torch.testing.assert_close(SnapKVPolicy(observation=8).scores(full), pooled)


def test_expected_attention_is_that_of_normal_queries_at_positions_to_come() -> None:
    full, policy = row(40, 12), ExpectedAttentionPolicy(observation=12, horizon=20)
    assert full.queries is not None
    unit = torch.eye(DIM)

    def turning(by: int) -> Tensor:
        """The rotation by so many positions as a matrix."""
        return ROTARY.turn(unit, torch.full((DIM,), by)).T

    positions = full.positions.tolist()
    mean_turn = torch.stack([turning(positions[-1] + 1 + ahead) for ahead in range(20)]).mean(0)
    expected = torch.zeros(KV_HEADS, 40)
    for head in range(HEADS):
        raw = torch.stack(
            [turning(-at) @ q for at, q in zip(positions[-12:], full.queries[head], strict=True)]
        )
        mean, covariance = mean_turn @ raw.mean(0), mean_turn @ torch.cov(raw.T) @ mean_turn.T
        keys = full.keys[head // 3]
        weights = keys @ mean / DIM**0.5 + ((keys @ covariance) * keys).sum(1) / 2 / DIM
        expected[head // 3] += weights.softmax(0) / 3
    expected = (expected + policy.epsilon) * full.values.norm(dim=-1)
    torch.testing.assert_close(policy.scores(full), expected, atol=1e-4, rtol=1e-4)


def test_the_window_keeps_the_newest() -> None:
    kept = WindowPolicy().choose(row(60, 1, text=1.0), 40, 4, 10)
    assert kept.tolist() == [[*range(4), *range(24, 60)]] * KV_HEADS


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: policy_named("best"), "there is no eviction policy 'best'; there are snapkv"),
        (lambda: SnapKVPolicy(text_share=1.5), "text_share"),
        (lambda: SnapKVPolicy(kernel=4), "kernel odd"),
        (lambda: ExpectedAttentionPolicy(observation=1), "at least 2"),
    ],
)
def test_bad_settings_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
