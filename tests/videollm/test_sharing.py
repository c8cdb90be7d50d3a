"""Budgets by layer: the same memory, shared out otherwise."""

from __future__ import annotations

import itertools
from pathlib import Path

import hypothesis.strategies as st
import pytest
from conftest import small_model
from hypothesis import given

from videollm import layer_needs
from videollm.budgets import BUDGETS, Plan, build_budgets
from videollm.budgets.calibration import Calibration, calibration_file, read_calibration
from videollm.budgets.zigzag import ASSURED, share_out
from videollm.layer_needs import Needs

NEEDS = st.floats(1, 8000)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    least = draw(st.integers(1, 60))
    average = draw(st.integers(least, 4000))
    most = draw(st.integers(average, 8000))
    needs = draw(st.lists(NEEDS, min_size=1, max_size=40))
    calibration = Calibration(
        model="any",
        fingerprint="",
        sources=[],
        window=32,
        tokens=0,
        measurements=1,
        date="",
        attention=needs,
        output=needs[::-1],
    )
    return Plan(len(needs), average, least, most, calibration)


@given(plan=plans(), kind=st.sampled_from(list(BUDGETS)))
def test_every_kind_keeps_the_sum_and_the_limits(plan: Plan, kind: str) -> None:
    entries = BUDGETS[kind](plan)
    assert len(entries) == plan.layers and sum(entries) == plan.layers * plan.average
    assert plan.least <= min(entries) and max(entries) <= plan.most


@given(plan=plans())
def test_who_needs_more_gets_no_less(plan: Plan) -> None:
    assert plan.calibration is not None
    needs = plan.calibration.attention
    entries = share_out(needs, plan)
    pairs = sorted(zip(needs, entries, strict=True))
    for (need, got), (more, gets) in itertools.pairwise(pairs):
        assert got <= gets if need < more else abs(got - gets) <= 1


@given(plan=plans(), need=NEEDS)
def test_equal_needs_are_uniform(plan: Plan, need: float) -> None:
    assert share_out([need] * plan.layers, plan) == (plan.average,) * plan.layers


def test_zigzag_is_the_papers_formula_and_hands_back_what_the_limit_cuts_off() -> None:
    needs = [100, 300, 200, 1000]
    plan = Plan(4, average=400, least=37, most=5000)
    assured = ASSURED * 400
    formula = [assured + (400 - assured) * 4 * need / sum(needs) for need in needs]
    assert share_out(needs, plan) == tuple(round(share) for share in formula) == (250, 350, 300, 700)
    # 100 of the last one's 700 don't fit: they go to the others as 100 : 300 : 200.
    assert share_out(needs, Plan(4, 400, 37, 600)) == (267, 400, 333, 600)


@given(plan=plans())
def test_the_pyramid_falls_evenly(plan: Plan) -> None:
    entries = BUDGETS["pyramid"](plan)
    steps = [high - low for high, low in itertools.pairwise(entries)]
    assert all(step >= 0 for step in steps)
    assert not steps or max(steps) - min(steps) <= 2  # of rounding


def test_the_pyramid_is_steep_where_it_may_be() -> None:
    assert BUDGETS["pyramid"](Plan(3, 2000, 37, 8000)) == (3900, 2000, 100)


def test_a_calibration_is_used_by_itself_and_only_for_its_own_model(tmp_path: Path) -> None:
    model, measured = (
        small_model(),
        [Needs([10, 20, 30, 40], [4, 3, 2, 1]), Needs([30, 20, 30, 40], [4, 3, 2, 1])],
    )
    made = layer_needs.summarize(model, "tiny", ["clip.mp4"], 500, measured)
    assert made.attention == [20, 20, 30, 40] and made.measurements == 2
    assert build_budgets(model, 400).entries == (400,) * 4
    assert build_budgets(model, 400, calibration=made).entries == (346, 345, 418, 491)
    assert build_budgets(model, 400, "uniform", made).entries == (400,) * 4
    with pytest.raises(ValueError, match=r"another model than this one \(tiny, .*videollm calibrate"):
        build_budgets(small_model(layers="none"), 400, calibration=made)
    with pytest.raises(ValueError, match="want a calibration; make one with: videollm calibrate"):
        build_budgets(model, 400, "zigzag")


def test_a_calibration_lies_beside_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDEOLLM_CACHE", str(tmp_path / "cache"))
    assert calibration_file(str(tmp_path)) == tmp_path / "calibration.json"
    assert calibration_file("pocket") == tmp_path / "cache/calibrations/pocket/calibration.json"
    assert calibration_file("owner/name").parent.name == "owner--name"


@pytest.mark.parametrize("text", ["{", "{}", '{"attention": "much"}'])
def test_a_damaged_calibration_is_told(text: str, tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    assert read_calibration(path) is None
    path.write_text(text)
    with pytest.raises(ValueError, match=r"calibration.json is no calibration .*calibrate anew"):
        read_calibration(path)
