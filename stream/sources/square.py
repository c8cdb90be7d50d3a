"""Picture sizes: bounded, and padded to the square that a vision encoder wants."""

from __future__ import annotations

import cv2
import numpy as np


def fit_size(width: int, height: int, max_side: int | None) -> tuple[int, int]:
    """(width, height) scaled down, aspect kept, so that neither side is above `max_side`; never below 1."""
    scale = 1.0 if max_side is None else min(1.0, max_side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def resize(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """uint8 [h, w, 3] -> uint8 [height, width, 3]: averages areas on the way down, interpolates up."""
    old_height, old_width = pixels.shape[:2]
    if (old_width, old_height) == (width, height):
        return pixels
    shrinks = width <= old_width and height <= old_height
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def pad_to_square(pixels: np.ndarray, size: int) -> np.ndarray:
    """uint8 [height, width, 3] -> uint8 [size, size, 3]: aspect kept, centred on black."""
    height, width = pixels.shape[:2]
    scale = size / max(height, width)
    new_width, new_height = max(1, round(width * scale)), max(1, round(height * scale))
    top, left = (size - new_height) // 2, (size - new_width) // 2
    square = np.zeros((size, size, 3), np.uint8)
    square[top : top + new_height, left : left + new_width] = resize(pixels, new_width, new_height)
    return square
