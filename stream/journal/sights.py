"""Signatures as a journal keeps them: the few classes that a frame shows, and how much of each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SIGHT = np.dtype([("index", "<u2"), ("share", "i1")])


def pack(signature: np.ndarray) -> bytes:
    """A signature, int8 [classes], as its classes that are seen."""
    (index,) = signature.nonzero()
    seen = np.empty(len(index), SIGHT)
    seen["index"], seen["share"] = index, signature[index]
    return seen.tobytes()


def largest(packed: Sequence[bytes], weights: np.ndarray) -> np.ndarray:
    """The largest share of each of these signatures, times its class's weight (float32 [classes]): float32
    [signatures]. All are looked through at once, so that a question about days waits for tenths of a second.
    """
    seen = np.frombuffer(b"".join(packed), SIGHT)
    ends = np.cumsum([len(one) for one in packed]) // SIGHT.itemsize
    weighted = weights[seen["index"]] * seen["share"]
    (asked,) = weighted.nonzero()
    found = np.zeros(len(packed), np.float32)
    np.maximum.at(found, np.searchsorted(ends, asked, side="right"), weighted[asked])
    return found
