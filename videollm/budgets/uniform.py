"""Every layer keeps the same."""

from __future__ import annotations

from videollm.budgets.base import Plan


def uniform(plan: Plan) -> tuple[int, ...]:
    """The average in every layer."""
    return (plan.average,) * plan.layers
