"""Low layers keep more than high ones."""

from __future__ import annotations

from videollm.budgets.base import Plan, whole

STEEPNESS = 20  # the paper's beta: the average to the last layer's budget


def pyramid(plan: Plan) -> tuple[int, ...]:
    """PyramidKV (Cai et al., 2024): budgets fall linearly over depth, to a `STEEPNESS`th of the average where
    the limits allow it, else less steeply; the sum is kept."""
    fall = plan.average - max(plan.least, plan.average / STEEPNESS)
    fall = min(fall, plan.most - plan.average)
    middle = (plan.layers - 1) / 2
    step = fall / max(0.5, middle)
    return whole([plan.average + step * (middle - layer) for layer in range(plan.layers)], plan.total)
