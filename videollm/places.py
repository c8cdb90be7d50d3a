"""Where frames lie among the tokens of a step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class FramePlaces:
    """Places of frames' tokens in the flattened [batch * sequence] of a step. Frames are whole."""

    index: Tensor  # int64 [frames, tokens]
    others: Tensor  # bool [batch * sequence], which tokens are of no frame
