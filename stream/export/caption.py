"""Captions as pictures: wrapped, white on a dark band, readable at any size."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

SMALLEST_FONT = 12
_ELLIPSIS = "…"


@lru_cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """A font of that many pixels: DejaVu where the system has it (more scripts), else Pillow's own."""
    try:
        return ImageFont.truetype("DejaVuSans.ttf", size)
    except OSError:
        return ImageFont.load_default(size)


def wrapped(lines: Iterable[str], size: int, width: int, most: int) -> list[str]:
    """The lines broken to `width` pixels at that font size; what exceeds `most` lines ends in an ellipsis."""
    length = font(size).getlength
    broken: list[str] = []
    for line in lines:
        current = ""
        for word in line.split():
            if current and length(f"{current} {word}") > width:
                broken.append(current)
                current = word
            else:
                current = f"{current} {word}".strip()
            while length(current) > width and len(current) > 1:
                fits = next(
                    n for n in range(len(current) - 1, 0, -1) if n == 1 or length(current[:n]) <= width
                )
                broken.append(current[:fits])
                current = current[fits:]
        broken.append(current)
    if len(broken) <= most:
        return broken
    last = broken[most - 1]
    while last and length(last + _ELLIPSIS) > width:
        last = last[:-1]
    return [*broken[: most - 1], last.rstrip() + _ELLIPSIS]


def caption_band(lines: Iterable[str], width: int, height: int) -> Image.Image:
    """The caption for a picture of `width` x `height` pixels: an RGBA band as wide, at most half as high."""
    size = max(SMALLEST_FONT, min(width, height) // 16)
    margin = size // 2
    line_height = size * 5 // 4
    most = max(1, (height // 2 - margin) // line_height)
    text = wrapped(lines, size, width - 2 * margin, most)
    band = Image.new("RGBA", (width, len(text) * line_height + margin), (0, 0, 0, 150))
    draw = ImageDraw.Draw(band)
    for row, line in enumerate(text):
        position = (width / 2, margin / 2 + (row + 0.5) * line_height)
        draw.text(position, line, fill="white", font=font(size), anchor="mm")
    return band
