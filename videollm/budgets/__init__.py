"""Budgets of a cache by name: how the entries that it may keep are shared out among the layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from videollm.budgets.base import Budgets, Plan, parse_budget
from videollm.budgets.pyramid import pyramid
from videollm.budgets.uniform import uniform
from videollm.budgets.zigzag import zigzag, zigzag_output

if TYPE_CHECKING:
    from videollm.budgets.calibration import Calibration
    from videollm.depth_lm import DepthLM

__all__ = ["BUDGETS", "Budgets", "Plan", "build_budgets", "parse_budget"]

BUDGETS: dict[str, Callable[[Plan], tuple[int, ...]]] = {
    "uniform": uniform,
    "pyramid": pyramid,
    "zigzag": zigzag,
    "zigzag_output": zigzag_output,
}
"""Entries of each layer, within a plan's limits and with its sum."""


def build_budgets(
    model: DepthLM,
    budget: str | int,
    kind: str | None = None,
    calibration: Calibration | None = None,
    headroom: int = Budgets.headroom,
) -> Budgets:
    """Budgets of a number of tokens or a share of the model's context ("20%"), which is the average of the
    layers; by default "zigzag" where there is a calibration, else "uniform". ValueError for an unknown kind,
    for a budget that is too small or too large, and for a calibration of another model."""
    kind = kind or ("zigzag" if calibration else "uniform")
    if kind not in BUDGETS:
        raise ValueError(f"there are no budgets {kind!r}; there are {', '.join(BUDGETS)}")
    if calibration is not None:
        calibration.check(model)
    layers, average = len(model.model.layers), parse_budget(budget, model.context)
    same = Budgets((average,) * layers, headroom=headroom)
    same.check(model.context)
    plan = Plan(layers, average, same.least, model.context - headroom, calibration)
    return Budgets(BUDGETS[kind](plan), headroom=headroom)
