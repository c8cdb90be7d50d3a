"""The ROS 2 example's conversion, without ROS."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

sys.path.append(str(Path(__file__).parents[2] / "examples" / "ros2"))

from conversion import seconds, to_jpeg

RED, WIDTH, HEIGHT = (200, 30, 20), 16, 8


def message(encoding: str, colour: tuple[int, ...], padding: int) -> SimpleNamespace:
    row = bytes(colour) * WIDTH + bytes(padding)
    return SimpleNamespace(encoding=encoding, width=WIDTH, height=HEIGHT, step=len(row), data=row * HEIGHT)


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize(
    ("encoding", "colour", "expected"),
    [
        ("rgb8", RED, RED),
        ("bgr8", RED[::-1], RED),
        ("rgba8", (*RED, 9), RED),
        ("bgra8", (*RED[::-1], 9), RED),
        ("mono8", (77,), (77, 77, 77)),
    ],
)
def test_images_become_jpegs_of_the_same_colours(
    encoding: str, colour: tuple[int, ...], expected: tuple[int, ...], padding: int
) -> None:
    image = Image.open(io.BytesIO(to_jpeg(message(encoding, colour, padding), quality=95)))
    assert (image.format, image.size) == ("JPEG", (WIDTH, HEIGHT))
    assert np.abs(np.asarray(image.convert("RGB")).astype(int) - expected).max() < 8


def test_an_encoding_that_is_not_known_is_told() -> None:
    with pytest.raises(ValueError, match="16UC1 is not known"):
        to_jpeg(message("16UC1", (0, 0), 0))


def test_stamps_are_seconds() -> None:
    assert seconds(SimpleNamespace(sec=12, nanosec=500_000_000)) == 12.5
