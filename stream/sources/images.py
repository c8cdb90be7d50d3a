"""Pictures as a stream: a folder of them, or a single one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from stream.frames import Frame
from stream.sources.base import Source, SourceError

IMAGE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"}
)


class ImageSource(Source):
    """One picture each 1/`fps` seconds, in the order given; unreadable ones are left out."""

    def __init__(self, paths: Sequence[Path], name: str, fps: float, max_side: int | None) -> None:
        super().__init__()
        self.name = name
        self.duration = len(paths) / fps
        self._paths = paths
        self._fps = fps
        self._max_side = max_side

    def _frames(self) -> Iterator[Frame]:
        shown = 0
        for path in self._paths:
            try:
                pixels = read_image(path, self._max_side)
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
                continue  # all that Pillow raises on damaged files
            yield Frame(shown / self._fps, pixels)
            shown += 1
        unreadable = len(self._paths) - shown
        if not shown:
            raise SourceError(f"{self.name}: none of {unreadable} pictures can be read; pass others")
        if unreadable:
            self.problem = f"{unreadable} of {len(self._paths)} pictures could not be read"

    def _release(self) -> None:
        """Nothing is held open between two pictures."""


def list_images(folder: Path) -> list[Path]:
    """The pictures of a folder in natural order. Raises SourceError when it has none."""
    paths = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES]
    if not paths:
        raise SourceError(f"{folder} has no pictures in it; pass a clip, or a folder of .jpg or .png files")
    return sorted(paths, key=lambda path: _natural_key(path.name))


def read_image(path: Path, max_side: int | None) -> np.ndarray:
    """uint8 [height, width, 3], turned as its EXIF data says, neither side above `max_side`."""
    with Image.open(path) as image:
        return to_pixels(image, max_side)


def to_pixels(image: Image.Image, max_side: int | None) -> np.ndarray:
    """An opened picture's pixels, as `read_image` gives them; decodes it."""
    if image.mode.startswith("I;16"):  # Pillow would cut all values above 255 to white
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if max_side is not None:
        image.thumbnail((max_side, max_side))
    return np.array(ImageOps.exif_transpose(image).convert("RGB"))


def _natural_key(name: str) -> list[tuple[int, str]]:
    # "frame2" before "frame10": runs of digits stand at the odd places of the split.
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if index % 2 else (0, part.lower()) for index, part in enumerate(parts)]
