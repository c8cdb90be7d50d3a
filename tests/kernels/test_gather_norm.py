"""Gather and RMSNorm: reference and kernel against plain maths."""

from __future__ import annotations

import pytest
import torch
from checks import DEVICE, gradients, leaves, near, on_gpu, random
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from kernels import gather_norm
from kernels.gather_norm import gather_rms_norm

pytest.importorskip("triton")

EPS = 1e-5
PATHS = {"reference": gather_norm._reference, "triton": gather_norm._GatherNorm.apply}
SIZES = [(12, 5, 48), (9, 9, 33), (7, 0, 16), (1, 1, 1), on_gpu(25600, 5120, 4096), on_gpu(25600, 5120, 1000)]


def exactly(x: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    rows = x[index]
    return weight * rows / (rows.square().mean(1, keepdim=True) + EPS).sqrt()


def some(rows: int, kept: int) -> Tensor:
    return torch.randperm(rows, generator=torch.Generator().manual_seed(kept))[:kept].to(DEVICE)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "kept", "dim"), SIZES)
def test_forward_and_gradients(path: str, dtype: torch.dtype, rows: int, kept: int, dim: int) -> None:
    index = some(rows, kept)
    inputs = leaves(random(rows, dim, dtype=dtype), random(dim, dtype=dtype))
    exact = leaves(*inputs, dtype=torch.float64)
    out = PATHS[path](inputs[0], index, inputs[1], EPS)
    true = exactly(exact[0], index, exact[1])
    assert out.dtype == dtype
    near(out, true, dtype)
    for grad, want, leaf in zip(gradients(out, inputs), gradients(true, exact), inputs, strict=True):
        assert grad.dtype == leaf.dtype
        near(grad, want, dtype)


@pytest.mark.parametrize("path", PATHS)
def test_strided(path: str) -> None:
    x, index, weight = random(20, 32)[::2, ::2], some(10, 4), random(16)
    near(PATHS[path](x, index, weight, EPS), exactly(x.double(), index, weight.double()), torch.float32)


def test_rounds_as_llama_does() -> None:
    x, norm = random(10, 40, dtype=torch.bfloat16), LlamaRMSNorm(40, EPS).to(DEVICE, torch.bfloat16)
    norm.weight.data = random(40, dtype=torch.bfloat16)
    index = some(10, 6)
    with torch.no_grad():
        assert torch.equal(gather_norm._reference(x, index, norm.weight, EPS), norm(x[index]))


def test_saves_no_copy_and_sees_changes_in_place() -> None:
    x, weight = leaves(random(50, 16), random(16))
    x = x * 1
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = PATHS["triton"](x, some(50, 5), weight, EPS)
    owned = {x.data_ptr(), weight.data_ptr()}
    assert sum(tensor.numel() for tensor in saved if tensor.data_ptr() not in owned) == 5 + 5

    out = PATHS["triton"](x, some(50, 5), weight, EPS)
    with torch.no_grad():
        x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_public_function_and_errors() -> None:
    x, index, weight = random(6, 8), some(6, 3), random(8)
    near(gather_rms_norm(x, index, weight, EPS), exactly(x.double(), index, weight.double()), torch.float32)
    with pytest.raises(ValueError, match=r"x must be \[rows, dim\]"):
        gather_rms_norm(x[0], index, weight, EPS)
    with pytest.raises(ValueError, match=r"index must be \[kept\] int64"):
        gather_rms_norm(x, index.int(), weight, EPS)
    with pytest.raises(ValueError, match=r"weight must be \[8\]"):
        gather_rms_norm(x, index, weight[:2], EPS)
