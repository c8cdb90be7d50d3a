"""Which way an operation goes: its Triton kernel or its plain PyTorch reference.

The device decides: Triton on CUDA tensors where it imports and the card is of compute capability 8.0 or
newer, else the reference. `TRITON_INTERPRET` is not looked at: it changes how kernels run once they are
called, and a process that has it set must not find every CPU tensor on the slow interpreter. The tests call
the kernels themselves.

Triton is an optional extra, so the operations take `triton`, `tl` and `jit` from here, and import without it.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = None  # type: ignore[assignment]

OLDEST = (8, 0)


def jit(function: Callable[..., Any]) -> Any:
    """`triton.jit`, or the function as it is where there is no Triton to compile (and to call) it."""
    return triton.jit(function) if triton else function


def runs_triton(tensor: Tensor) -> bool:
    """Whether an operation on this tensor goes through Triton; a card too old for it is warned of once."""
    return triton is not None and tensor.is_cuda and _new_enough(tensor.get_device())


def processors(tensor: Tensor) -> int:
    """How many programs run side by side where this tensor lies: a card's multiprocessors."""
    return _multiprocessors(tensor.get_device()) if tensor.is_cuda else 4


def power_of_two(number: int) -> int:
    """The smallest power of two that isn't below `number`: the extents that Triton's blocks can have."""
    return 1 << max(number - 1, 0).bit_length()


@functools.cache
def _new_enough(device: int) -> bool:
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST:
        warnings.warn(
            f"{torch.cuda.get_device_name(device)} has compute capability {capability[0]}.{capability[1]}, "
            f"the Triton kernels want {OLDEST[0]}.{OLDEST[1]}: running plain PyTorch",
            stacklevel=4,
        )
    return capability >= OLDEST


@functools.cache
def _multiprocessors(device: int) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count
