"""Hard cuts: a frame that shows another scene than the one before."""

from __future__ import annotations

import numpy as np

from stream.sources.square import resize

CELLS = 16  # a side of the small pictures that are compared
# Of a cell's colour, of 255: what a camera that pans or light that drifts changes is mostly less.
LEAST_CHANGE = 12.0
CUT_SHARE = 0.7  # of the cells: a thing that comes or goes leaves more of its scene as it was
LEAST_PICTURE = 0.3  # of the cells; what is black in both, a wide picture's bars perhaps, is none of it


def is_cut(before: np.ndarray, now: np.ndarray) -> bool:
    """Whether nearly all of the picture changed between two frames, uint8 [size, size, 3] each."""
    small = [resize(frame, CELLS, CELLS).astype(np.float32) for frame in (before, now)]
    picture = np.maximum(*small).max(-1) >= 1  # [cells, cells]
    if picture.mean() < LEAST_PICTURE:
        return False
    changes = np.abs(small[0] - small[1]).mean(-1)  # [cells, cells]
    return bool((changes[picture] >= LEAST_CHANGE).mean() >= CUT_SHARE)
