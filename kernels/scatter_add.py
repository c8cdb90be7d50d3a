"""What a layer adds, scaled by the router's gate and put back where its tokens lie.

The last thing that a mixture-of-depths layer does (VideoLLM-MoD, NeurIPS 2024: the score scales the layer's
output, so that the router learns). One pass over the kept rows alone: the skipped ones are not touched.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.dispatch import jit, power_of_two, runs_triton, tl


def scatter_add(x: Tensor, index: Tensor, update: Tensor, gate: Tensor) -> Tensor:
    """x with x[index] += gate * update: [rows, dim] in x's dtype. Go on with what is returned.

    x [rows, dim] and update [kept, dim] are floating point, x strided as it likes; gate [kept] float32; index
    [kept] int64, each row at most once, within 0..rows - 1 (not checked, that would wait for the device). The
    sum is taken in float32 and rounded once.

    Where no gradient is wanted, x itself is changed and returned. Where one is (grad mode on, and x, update
    or gate require it), x is left alone and a new tensor returned, because `route_top_k`, `route_threshold`
    and `gather_rms_norm` have saved x for their own gradients. The gradient to x is the incoming one, not
    copied.

    Raises ValueError for shapes or dtypes that don't fit.
    """
    if x.dim() != 2:
        raise ValueError(f"x must be [rows, dim], got {tuple(x.shape)}")
    if index.dim() != 1 or index.dtype != torch.int64:
        raise ValueError(f"index must be [kept] int64, got {tuple(index.shape)} {index.dtype}")
    if update.shape != (len(index), x.shape[1]):
        raise ValueError(f"update must be [{len(index)}, {x.shape[1]}], got {tuple(update.shape)}")
    if gate.shape != index.shape or gate.dtype != torch.float32:
        raise ValueError(f"gate must be [{len(index)}] float32, got {tuple(gate.shape)} {gate.dtype}")
    if not runs_triton(x):
        return _reference(x, index, update, gate)
    if _wants_gradient(x, update, gate):
        return _ScatterAdd.apply(x, index, update, gate)
    return _add_rows(x, index, update, gate)


def _wants_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _reference(x: Tensor, index: Tensor, update: Tensor, gate: Tensor) -> Tensor:
    rows = (x[index].float() + gate[:, None] * update.float()).to(x.dtype)  # [kept, dim]
    if _wants_gradient(x, update, gate):
        return x.index_copy(0, index, rows)
    return x.index_copy_(0, index, rows)


@jit
def _forward_kernel(x, index, update, gate, row_stride, column_stride, dim, BLOCK_DIM: tl.constexpr):
    slot = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK_DIM)
    inside = column < dim
    there = x + tl.load(index + slot) * row_stride + column * column_stride
    value = tl.load(there, mask=inside, other=0.0).to(tl.float32)
    added = tl.load(update + slot * dim + column, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(gate + slot) * added
    tl.store(there, value.to(x.dtype.element_ty), mask=inside)


@jit
def _backward_kernel(
    grad_out,
    index,
    update,
    gate,
    grad_update,
    grad_gate,
    row_stride,
    column_stride,
    dim,
    BLOCK_DIM: tl.constexpr,
):
    slot = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK_DIM)
    inside = column < dim
    there = grad_out + tl.load(index + slot) * row_stride + column * column_stride
    grad = tl.load(there, mask=inside, other=0.0).to(tl.float32)
    added = tl.load(update + slot * dim + column, mask=inside, other=0.0).to(tl.float32)
    scaled = tl.load(gate + slot) * grad
    tl.store(grad_update + slot * dim + column, scaled.to(grad_update.dtype.element_ty), mask=inside)
    tl.store(grad_gate + slot, tl.sum(grad * added, 0))


def _add_rows(x: Tensor, index: Tensor, update: Tensor, gate: Tensor) -> Tensor:
    """The kernel, in place."""
    block = power_of_two(x.shape[1])
    _forward_kernel[(len(index),)](
        x,
        index.contiguous(),
        update.contiguous(),
        gate.contiguous(),
        *x.stride(),
        x.shape[1],
        BLOCK_DIM=block,
        num_warps=min(max(block // 512, 1), 16),
    )
    if not x.is_inference():
        torch.autograd.graph.increment_version(x)  # a kernel's writes are hidden from autograd
    return x


class _ScatterAdd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, update: Tensor, gate: Tensor) -> Tensor:
        ctx.save_for_backward(index, update, gate)
        return _add_rows(x.clone(), index, update, gate)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:
        index, update, gate = ctx.saved_tensors
        update, gate = update.contiguous(), gate.contiguous()
        grad_update, grad_gate = torch.empty_like(update), torch.empty_like(gate)
        block = power_of_two(update.shape[1])
        _backward_kernel[(len(index),)](
            grad_out,
            index.contiguous(),
            update,
            gate,
            grad_update,
            grad_gate,
            *grad_out.stride(),
            update.shape[1],
            BLOCK_DIM=block,
            num_warps=min(max(block // 512, 1), 16),
        )
        return grad_out, None, grad_update, grad_gate
