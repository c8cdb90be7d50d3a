"""Layers keep as much as a calibration says that they need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from videollm.budgets.base import Plan, whole

if TYPE_CHECKING:
    from videollm.budgets.calibration import Calibration

ASSURED = 0.5  # share of the average that every layer gets
HALVINGS = 100


def zigzag(plan: Plan) -> tuple[int, ...]:
    """ZigZagKV (Zhong et al., COLING 2025) by what attention needs: LMBA. ValueError without calibration."""
    return share_out(_calibrated(plan).attention, plan)


def zigzag_output(plan: Plan) -> tuple[int, ...]:
    """ZigZagKV by what the layers' output needs: LMBO. ValueError without calibration."""
    return share_out(_calibrated(plan).output, plan)


def share_out(needs: Sequence[float], plan: Plan) -> tuple[int, ...]:
    """Budgets B_l = B_min + (B_avg - B_min) L u_l, u_l = need_l / sum of needs, whose sum is L B_avg; all
    needs are above 0.

    B_min is `ASSURED` of the average, and the least that is legal where that is more. What the largest legal
    budget cuts off goes back to the other layers, in proportion to their needs: B_l = min(most, B_min + s
    need_l) with the s that keeps the sum.
    """
    assured = max(plan.least, ASSURED * plan.average)

    def budgets(scale: float) -> list[float]:
        return [min(plan.most, assured + scale * need) for need in needs]

    low, high = 0.0, (plan.most - assured) / min(needs)  # nothing above B_min, the largest budget everywhere
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(budgets(middle)) < plan.total else (low, middle)
    return whole(budgets(low), plan.total)


def _calibrated(plan: Plan) -> Calibration:
    if plan.calibration is None:
        raise ValueError("budgets by need want a calibration; make one with: videollm calibrate MODEL CLIPS")
    return plan.calibration
