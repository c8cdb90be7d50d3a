"""A calibration as a picture: what each layer needs, and what a budget gives it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from videollm.budgets.calibration import Calibration

WIDTH, HEIGHT, MARGIN, LEGEND = 720, 360, 56, 24
COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c")


def layer_plot(calibration: Calibration, budget: str, entries: Sequence[int]) -> str:
    """An SVG with a line for each way of needing and one for what of a budget each layer gets."""
    lines: dict[str, Sequence[float]] = {
        "attention needs (LMBA)": calibration.attention,
        "output needs (LMBO)": calibration.output,
        f"gets of {budget}": entries,
    }
    layers, highest = len(entries), max(max(line) for line in lines.values())
    bottom, right = HEIGHT - MARGIN, WIDTH - MARGIN

    def x(layer: int) -> float:
        return MARGIN + (right - MARGIN) * layer / max(1, layers - 1)

    def y(value: float) -> float:
        return bottom - (bottom - MARGIN) * value / highest

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<path d="M{MARGIN} {MARGIN}V{bottom}H{right}" fill="none" stroke="black"/>',
        _text(WIDTH / 2, HEIGHT - 12, "layer"),
        _text(WIDTH / 2, 18, f"{calibration.model}: entries of a layer, {calibration.date}"),
        *(_text(x(layer), bottom + 16, str(layer)) for layer in range(0, layers, max(1, layers // 10))),
        *(_text(MARGIN - 8, y(value) + 4, f"{value:.0f}", "end") for value in (0, highest / 2, highest)),
    ]
    for number, (name, values) in enumerate(lines.items()):
        points = " ".join(f"{x(layer):.1f},{y(value):.1f}" for layer, value in enumerate(values))
        colour = COLOURS[number]
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        place = MARGIN + 90 + number * 200
        parts.append(f'<rect x="{place - 14}" y="{LEGEND + 2}" width="10" height="10" fill="{colour}"/>')
        parts.append(_text(place, LEGEND + 12, name, "start"))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
