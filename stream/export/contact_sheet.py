"""A contact sheet: the frames at which something was said, with time and caption."""

from __future__ import annotations

from PIL import Image, ImageDraw

from stream.export.caption import font, wrapped
from stream.export.times import format_time
from stream.frames import Frame

COLUMNS = 4
MOST_TILES = 48
PICTURE = (320, 180)
FONT_SIZE = 14
CAPTION_LINES = 3
MARGIN = 10
LINE_HEIGHT = FONT_SIZE * 5 // 4
TILE = (PICTURE[0] + MARGIN, PICTURE[1] + (CAPTION_LINES + 1) * LINE_HEIGHT + MARGIN)


class ContactSheet:
    """Collects frames as they pass; however many there are, the sheet keeps an even choice of at most 48."""

    def __init__(self) -> None:
        self._tiles: list[Image.Image] = []
        self._every = 1
        self._seen = 0

    def __len__(self) -> int:
        return len(self._tiles)

    def add(self, frame: Frame, text: str) -> None:
        """Put a frame on the sheet with what was said about it."""
        if self._seen % self._every == 0:
            if len(self._tiles) == MOST_TILES:
                self._tiles = self._tiles[::2]
                self._every *= 2
            self._tiles.append(_tile(frame, text))
        self._seen += 1

    def image(self) -> Image.Image:
        """The sheet so far: up to four pictures in a row."""
        columns = min(COLUMNS, max(1, len(self._tiles)))
        rows = max(1, -(-len(self._tiles) // COLUMNS))
        sheet = Image.new("RGB", (columns * TILE[0] + MARGIN, rows * TILE[1] + MARGIN), "white")
        for index, tile in enumerate(self._tiles):
            row, column = divmod(index, COLUMNS)
            sheet.paste(tile, (MARGIN + column * TILE[0], MARGIN + row * TILE[1]))
        return sheet


def _tile(frame: Frame, text: str) -> Image.Image:
    tile = Image.new("RGB", TILE, "white")
    picture = Image.fromarray(frame.pixels)
    picture.thumbnail(PICTURE)
    tile.paste(picture, ((PICTURE[0] - picture.width) // 2, (PICTURE[1] - picture.height) // 2))
    draw = ImageDraw.Draw(tile)
    lines = wrapped([text], FONT_SIZE, PICTURE[0], CAPTION_LINES)
    for row, (line, colour) in enumerate(
        [(format_time(frame.time), "gray"), *((line, "black") for line in lines)]
    ):
        draw.text((0, PICTURE[1] + 4 + row * LINE_HEIGHT), line, fill=colour, font=font(FONT_SIZE))
    return tile
