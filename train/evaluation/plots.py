"""Pictures of what a model did with a clip, as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

Timed = tuple[float, str]
WIDTH, MARGIN, LINE, HEADER = 960, 90, 16, 30
TRUE, SAID = "#1f77b4", "#ff7f0e"
TICKS = 10
CELL, GAP = 18, 26


def timeline_plot(title: str, start: float, end: float, true: Sequence[Timed], said: Sequence[Timed]) -> str:
    """What happened above a time axis of seconds, what was said below it, each at its moment, in a line of
    its own where texts would cover each other."""
    span = max(end - start, 1e-9)

    def x(time: float) -> float:
        return MARGIN + (WIDTH - 2 * MARGIN) * (time - start) / span

    above = HEADER + LINE * (len(true) + 1)
    height = above + LINE * (len(said) + 4)
    parts = [f'<path d="M{MARGIN} {above}H{WIDTH - MARGIN}" stroke="black"/>']
    for tick in range(TICKS + 1):
        time = start + span * tick / TICKS
        parts.append(f'<path d="M{x(time):.1f} {above - 3}v6" stroke="black"/>')
        parts.append(_text(x(time), height - 8, f"{time:.1f} s"))
    for number, (time, text) in enumerate(true):
        parts += _event(x(time), above, above - LINE * (len(true) - number), text, TRUE)
    for number, (time, text) in enumerate(said):
        parts += _event(x(time), above, above + LINE * (number + 1), text, SAID)
    key = (
        _text(MARGIN, HEADER - 12, title, "start")
        + _text(WIDTH - MARGIN - 60, HEADER - 12, "true", "end", TRUE)
        + _text(WIDTH - MARGIN, HEADER - 12, "said", "end", SAID)
    )
    return _svg(WIDTH, height, [key, *parts])


def _event(x: float, axis: float, y: float, text: str, colour: str) -> list[str]:
    anchor = "start" if x < WIDTH * 0.6 else "end"
    return [
        f'<path d="M{x:.1f} {axis}V{y}" stroke="{colour}" stroke-opacity="0.5"/>',
        f'<circle cx="{x:.1f}" cy="{axis}" r="3" fill="{colour}"/>',
        _text(x + (4 if anchor == "start" else -4), y + 4, text, anchor, colour),
    ]


def kept_plot(title: str, kept: Mapping[int, Sequence[float]], picture: str | None = None) -> str:
    """For each routing layer a frame's grid, the darker a place the oftener its token ran; the token of the
    whole frame lies above it. `kept` gives shares of a frame's tokens, the whole frame's first.

    `picture`, a data: URL of a square frame, is drawn below each grid.
    """
    side = round((len(next(iter(kept.values()))) - 1) ** 0.5)
    wide = side * CELL
    columns = max(1, (WIDTH - GAP) // (wide + GAP))
    tall = wide + CELL + GAP + LINE
    parts = [
        _text(GAP, HEADER - 12, f"{title}: share of the frames in which a token runs, by layer", "start")
    ]
    for number, (layer, shares) in enumerate(kept.items()):
        left = GAP + number % columns * (wide + GAP)
        top = HEADER + number // columns * tall
        parts.append(_text(left + wide / 2, top + LINE - 4, f"layer {layer}"))
        top += LINE
        parts.append(_cell(left, top, wide, CELL - 3, shares[0], 1.0))
        top += CELL
        if picture is not None:
            parts.append(f'<image x="{left}" y="{top}" width="{wide}" height="{wide}" href="{picture}"/>')
        for place, share in enumerate(shares[1:]):
            row, column = divmod(place, side)
            opacity = 1.0 if picture is None else 0.6
            parts.append(_cell(left + column * CELL, top + row * CELL, CELL, CELL, share, opacity))
    rows = -(-len(kept) // columns)
    return _svg(WIDTH, HEADER + rows * tall, parts)


def _cell(x: float, y: float, width: float, height: float, share: float, opacity: float) -> str:
    shade = round(255 * (1 - share))
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="rgb({shade},{shade},255)" '
        f'fill-opacity="{opacity}" stroke="gray" stroke-width="0.5"><title>{share:.0%}</title></rect>'
    )


def _svg(width: int, height: int, parts: Sequence[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="11">'
    )
    return (
        "\n".join([head, f'<rect width="{width}" height="{height}" fill="white"/>', *parts, "</svg>"]) + "\n"
    )


def _text(x: float, y: float, text: str, anchor: str = "middle", colour: str = "black") -> str:
    # A model may say what XML has no place for.
    shown = escape(
        "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
    )
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{shown}</text>'
