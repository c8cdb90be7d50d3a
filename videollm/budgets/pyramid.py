"""Low layers keep more than high ones."""

from __future__ import annotations

from videollm.budgets.base import Plan, whole

STEEPNESS = 20  # the paper's beta: the average to the last layer's budget


def pyramid(plan: Plan) -> tuple[int, ...]:
    """PyramidKV (Cai et al., 2024): budgets fall linearly over depth, to a `STEEPNESS`th of the average where
    the limits allow it, else less steeply; the sum is kept."""
    fall = plan.average - max(plan.least, plan.average / STEEPNESS)
    fall = min(fall, plan.most - plan.average)
    depths = [2 * layer / max(1, plan.layers - 1) - 1 for layer in range(plan.layers)]  # -1 ... 1
    return whole([plan.average - fall * depth for depth in depths], plan.total)
