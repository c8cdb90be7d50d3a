"""Budgets of a cache by name: how the entries that it may keep are shared out among the layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from videollm.budgets.base import Budgets, parse_budget
from videollm.budgets.uniform import uniform

if TYPE_CHECKING:
    from videollm.depth_lm import DepthLM

__all__ = ["BUDGETS", "Budgets", "build_budgets", "parse_budget"]

BUDGETS: dict[str, Callable[[DepthLM, int], tuple[int, ...]]] = {"uniform": uniform}
"""Entries of each layer of a model, so many on average."""


def build_budgets(model: DepthLM, budget: str | int, kind: str = "uniform") -> Budgets:
    """Budgets of a number of tokens or a share of the model's context ("20%"), which is the average of the
    layers. ValueError for an unknown kind, and for a budget that is too small or too large."""
    if kind not in BUDGETS:
        raise ValueError(f"there are no budgets {kind!r}; there are {', '.join(BUDGETS)}")
    budgets = Budgets(BUDGETS[kind](model, parse_budget(budget, model.context)))
    budgets.check(model.context)
    return budgets
