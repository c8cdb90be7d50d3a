"""How much a cache keeps: what can be asked for, and what is refused."""

from __future__ import annotations

import pytest
from conftest import small_model

from videollm import VideoLLM
from videollm.budgets import Budgets, build_budgets, parse_budget
from videollm.eviction import SnapKVPolicy
from videollm.layer_budget import LayerBudgetCache


@pytest.mark.parametrize(
    ("budget", "entries"), [("20%", 409), (" 12.5% ", 256), ("300", 300), (300, 300), ("100%", 2048)]
)
def test_a_budget_is_a_share_of_the_context_or_a_number(budget: str | int, entries: int) -> None:
    assert parse_budget(budget, 2048) == entries


@pytest.mark.parametrize("budget", ["", "much", "20 percent", "-5", "0%", 0, "1e999%"])
def test_other_budgets_are_refused(budget: str | int) -> None:
    with pytest.raises(ValueError, match='a share of the context such as "20%"'):
        parse_budget(budget, 2048)


def test_memory_is_known_from_the_start(tiny: VideoLLM) -> None:
    tiny.config.context_tokens = 1000
    cache = LayerBudgetCache(
        tiny, 3, Budgets((100, 200, 300, 400), headroom=50), SnapKVPolicy(observation=16)
    )
    entries = 3 * (1000 + 4 * 50)
    entry = 2 * (2 * 16 * 4) + 2 * 4  # key and value of two heads of 16 floats, and two marks
    assert cache.nbytes == entries * entry + 4 * 3 * 4 * 17 * 16 * 4
    assert all(cache.filled_bytes(slot) == 0 for slot in range(3))


def test_uniform_budgets_are_the_same_everywhere() -> None:
    assert build_budgets(small_model(), "10%").entries == (409,) * 4


@pytest.mark.parametrize(
    ("budgets", "message"),
    [
        (lambda model: Budgets((36,) * 4), "too small: 4 sinks and a window of 32 .* at least 37"),
        (lambda model: Budgets(()), "too small"),
        (lambda model: Budgets((50,) * 4, sinks=-1), "sinks >= 0"),
        (lambda model: Budgets((50,) * 4, headroom=0), "headroom >= 1"),
        (lambda model: LayerBudgetCache(model, 1, Budgets((50,) * 3)), "3 budgets are given for 4 layers"),
        (lambda model: LayerBudgetCache(model, 1, Budgets((50,) * 4, window=8)), "observes 32 queries"),
        (lambda model: build_budgets(model, "99%"), "at most 3968 entries, or no budget"),
        (lambda model: build_budgets(model, "20%", "best"), "no budgets 'best'; there are uniform"),
    ],
)
def test_what_can_not_work_is_refused(budgets, message: str, tiny: VideoLLM) -> None:
    with pytest.raises(ValueError, match=message):
        budgets(tiny)
