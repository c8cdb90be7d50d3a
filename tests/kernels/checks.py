"""What the tests of the operations share: where they run, and how near is near enough.

Kernels are called by the functions that launch them, because the public functions choose by the device and
take the reference on a CPU. Without a GPU the kernels run interpreted (`tests/conftest.py` switches that on),
with one the same checks run compiled, and the sizes marked `gpu` too.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# Float32 sums are taken in another order; a 16-bit result may round to its neighbour.
TOLERANCE = {
    torch.float32: {"rtol": 1e-4, "atol": 1e-4},
    torch.float16: {"rtol": 4e-3, "atol": 4e-3},
    torch.bfloat16: {"rtol": 2e-2, "atol": 2e-2},
}


def on_gpu(*values: object) -> object:
    """A parameter set too large for the interpreter."""
    without = pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
    return pytest.param(*values, marks=[pytest.mark.gpu, without])


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator).to(DEVICE, dtype)


def near(found: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    """`found` lies near `exact` (float64) as far as `dtype` allows, scaled to the largest value."""
    scale = max(exact.abs().max().item(), 1.0) if exact.numel() else 1.0
    torch.testing.assert_close(found.double() / scale, exact / scale, **TOLERANCE[dtype])


def gradients(result: Tensor, inputs: list[Tensor], seed: int = 9) -> tuple[Tensor, ...]:
    """Gradients of a random weighted sum of `result`, the same sum for every way of computing it."""
    weights = random(*result.shape, seed=seed).to(result.dtype)
    return torch.autograd.grad((result * weights).sum(), inputs)


def leaves(*tensors: Tensor, dtype: torch.dtype | None = None) -> list[Tensor]:
    """Fresh copies that want a gradient, in float64 or another dtype where one is named."""
    return [tensor.detach().clone().to(dtype or tensor.dtype).requires_grad_() for tensor in tensors]
