"""Gated scatter-add: reference and kernel against plain maths."""

from __future__ import annotations

import pytest
import torch
from checks import DEVICE, gradients, leaves, near, on_gpu, random
from torch import Tensor

from kernels import scatter_add as module
from kernels.scatter_add import scatter_add

pytest.importorskip("triton")

PATHS = {"reference": module._reference, "triton": module._ScatterAdd.apply}
IN_PLACE = {"reference": module._reference, "triton": module._add_rows}
SIZES = [(12, 5, 48), (9, 9, 33), (7, 0, 16), (1, 1, 1), on_gpu(25600, 5120, 4096), on_gpu(25600, 5120, 1000)]


def exactly(x: Tensor, index: Tensor, update: Tensor, gate: Tensor) -> Tensor:
    return x.index_add(0, index, gate[:, None] * update)


def some(rows: int, kept: int) -> Tensor:
    return torch.randperm(rows, generator=torch.Generator().manual_seed(kept))[:kept].to(DEVICE)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "kept", "dim"), SIZES)
def test_forward_and_gradients(path: str, dtype: torch.dtype, rows: int, kept: int, dim: int) -> None:
    index = some(rows, kept)
    inputs = leaves(random(rows, dim, dtype=dtype), random(kept, dim, dtype=dtype, seed=1), random(kept))
    exact = leaves(*inputs, dtype=torch.float64)
    before = inputs[0].detach().clone()
    out = PATHS[path](inputs[0], index, *inputs[1:])
    true = exactly(exact[0], index, *exact[1:])
    assert out.dtype == dtype and torch.equal(inputs[0], before)
    near(out, true, dtype)
    for grad, want, leaf in zip(gradients(out, inputs), gradients(true, exact), inputs, strict=True):
        assert grad.dtype == leaf.dtype
        near(grad, want, dtype)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_place(path: str, dtype: torch.dtype) -> None:
    slab, index = random(20, 24, dtype=dtype), some(10, 4)
    x = slab[::2, ::2]
    update, gate = random(4, 12, dtype=dtype), random(4)
    true = exactly(x.double(), index, update.double(), gate.double())
    version, untouched = slab._version, slab[1::2].clone()
    assert IN_PLACE[path](x, index, update, gate) is x
    near(x, true, dtype)
    assert slab._version > version and torch.equal(slab[1::2], untouched)
    with torch.inference_mode():
        IN_PLACE[path](x.clone(), index, update, gate)


def test_skipped_tokens_may_be_part_of_the_graph_or_not() -> None:
    """x needs no gradient of its own for the result to carry the gate's."""
    x, index = random(6, 8), some(6, 3)
    update, gate = leaves(random(3, 8), random(3))
    before = x.clone()
    out = scatter_add(x, index, update, gate)
    out.sum().backward()
    assert torch.equal(x, before)
    near(gate.grad, update.double().sum(1), torch.float32)
    with torch.no_grad():
        assert scatter_add(x, index, update, gate) is x
    near(x, out.double(), torch.float32)


def test_errors() -> None:
    x, index, update, gate = random(6, 8), some(6, 3), random(3, 8), random(3)
    with pytest.raises(ValueError, match=r"x must be \[rows, dim\]"):
        scatter_add(x[0], index, update, gate)
    with pytest.raises(ValueError, match=r"index must be \[kept\] int64"):
        scatter_add(x, index.int(), update, gate)
    with pytest.raises(ValueError, match=r"update must be \[3, 8\]"):
        scatter_add(x, index, update[:2], gate)
    with pytest.raises(ValueError, match=r"gate must be \[3\] float32"):
        scatter_add(x, index, update, gate.half())
