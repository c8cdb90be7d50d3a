"""Rotary embeddings by position, and keys turned from one position to another."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class RotaryTable:
    """A decoder's rotary embeddings at the positions 0 ... `positions` - 1, whatever its RoPE type.

    Types whose frequencies depend on the length ("dynamic", "longrope") have those of the last position
    throughout: keys that stay must agree with keys that come.
    """

    def __init__(self, rotary: nn.Module, positions: int, dtype: torch.dtype, device: torch.device) -> None:
        rotary = copy.deepcopy(rotary)  # those types change themselves
        places = torch.arange(positions, device=device)[None]
        cos, sin = rotary(torch.empty(0, dtype=torch.float32, device=device), places)  # [1, positions, dim]
        self.cos, self.sin = cos[0].to(dtype), sin[0].to(dtype)  # [positions, dim]
        scaling = getattr(rotary, "attention_scaling", 1.0)
        # Keys carry the scaling already, and carry it on.
        self._turn_cos, self._turn_sin = cos[0] / scaling, sin[0] / scaling

    def __call__(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine, [..., dim], as decoder layers take them, at `positions` [...]."""
        return self.cos[positions], self.sin[positions]

    def turn(self, states: Tensor, by: Tensor) -> Tensor:
        """Rotated keys or queries [..., dim] as if they stood `by` [...] positions behind where they do, or
        before, where it is negative."""
        distance = by.abs()
        return _rotate_finely(
            states, self._turn_cos[distance], self._turn_sin[distance] * by.sign()[..., None]
        )

    def turn_on_average(self, states: Tensor, positions: int) -> Tensor:
        """The mean of [..., dim] turned by 0 ... `positions` - 1, or as far as the table goes."""
        return _rotate_finely(states, self._turn_cos[:positions].mean(0), self._turn_sin[:positions].mean(0))


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Llama's rotation of [..., dim], which pairs an entry of the first half with one of the second."""
    first, second = states.chunk(2, -1)
    return torch.addcmul(states * cos, torch.cat((-second, first), -1), sin)


def _rotate_finely(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The same in float32, rounded once."""
    return rotate(states.float(), cos, sin).to(states.dtype)
