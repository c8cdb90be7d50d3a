"""Kept rows gathered and RMS-normalised in one pass.

The first thing that a mixture-of-depths layer does with the tokens it lets in. Gathering first would write
the kept rows once and read them again; here each is read where it lies and leaves normalised (RMSNorm: Zhang
and Sennrich, NeurIPS 2019).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.dispatch import jit, power_of_two, processors, runs_triton, tl


def gather_rms_norm(x: Tensor, index: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS-normalise the rows x[index]: [kept, dim] in x's dtype.

    x [rows, dim] and weight [dim] are floating point, x strided as it likes; index [kept] int64, each row at
    most once, within 0..rows - 1 (not checked, that would wait for the device). As in the Llama of
    `transformers`, statistics are float32 and the normalised row is rounded to x's dtype before the weight
    multiplies it.

    For the backward pass it saves x itself, no copy of it, with the index and one float32 per kept row: in
    training x lives on anyway, because the router's gradient needs all of it. So x mustn't be changed in
    place between the two passes (autograd would raise), and `scatter_add` writes a new tensor whenever a
    gradient is wanted. The gradient to x is zero in the rows that weren't gathered.

    Raises ValueError for shapes or an index dtype that don't fit.
    """
    if x.dim() != 2:
        raise ValueError(f"x must be [rows, dim], got {tuple(x.shape)}")
    if index.dim() != 1 or index.dtype != torch.int64:
        raise ValueError(f"index must be [kept] int64, got {tuple(index.shape)} {index.dtype}")
    if weight.shape != x.shape[1:]:
        raise ValueError(f"weight must be [{x.shape[1]}], as x's dim, got {tuple(weight.shape)}")
    if runs_triton(x):
        return _GatherNorm.apply(x, index, weight, eps)
    return _reference(x, index, weight, eps)


def _reference(x: Tensor, index: Tensor, weight: Tensor, eps: float) -> Tensor:
    rows = x[index].float()  # [kept, dim]
    normed = rows * torch.rsqrt(rows.square().mean(-1, keepdim=True) + eps)
    return (weight * normed.to(x.dtype)).to(x.dtype)


@jit
def _forward_kernel(
    x, index, weight, out, rstd, row_stride, column_stride, dim, eps, BLOCK_DIM: tl.constexpr
):
    slot = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK_DIM)
    inside = column < dim
    row = x + tl.load(index + slot) * row_stride
    value = tl.load(row + column * column_stride, mask=inside, other=0.0).to(tl.float32)
    inverse = tl.rsqrt(tl.sum(value * value, 0) / dim + eps)
    normed = (value * inverse).to(x.dtype.element_ty).to(tl.float32)
    factor = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + slot * dim + column, (normed * factor).to(out.dtype.element_ty), mask=inside)
    tl.store(rstd + slot, inverse)


@jit
def _backward_kernel(
    grad_out,
    x,
    index,
    weight,
    rstd,
    grad_x,
    partial,
    row_stride,
    column_stride,
    kept,
    dim,
    BLOCK_DIM: tl.constexpr,
):
    # Each program walks over many rows, so that the weight's gradient adds up in registers.
    program = tl.program_id(0)
    column = tl.arange(0, BLOCK_DIM)
    inside = column < dim
    factor = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros([BLOCK_DIM], tl.float32)
    for slot in range(program, kept, tl.num_programs(0)):
        row = tl.load(index + slot)
        inverse = tl.load(rstd + slot)
        value = tl.load(x + row * row_stride + column * column_stride, mask=inside, other=0.0)
        normed = value.to(tl.float32) * inverse
        there = grad_out + tl.cast(slot, tl.int64) * dim + column
        grad = tl.load(there, mask=inside, other=0.0).to(tl.float32)
        total += grad * normed.to(x.dtype.element_ty).to(tl.float32)
        grad *= factor
        grad = inverse * (grad - normed * (tl.sum(grad * normed, 0) / dim))
        tl.store(grad_x + row * dim + column, grad.to(grad_x.dtype.element_ty), mask=inside)
    tl.store(partial + program.to(tl.int64) * dim + column, total, mask=inside)


class _GatherNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, weight: Tensor, eps: float) -> Tensor:
        kept, dim = len(index), x.shape[1]
        index, weight = index.contiguous(), weight.contiguous()
        out = x.new_empty(kept, dim)
        rstd = x.new_empty(kept, dtype=torch.float32)
        block = power_of_two(dim)
        _forward_kernel[(kept,)](
            x,
            index,
            weight,
            out,
            rstd,
            *x.stride(),
            dim,
            eps,
            BLOCK_DIM=block,
            num_warps=min(max(block // 512, 1), 16),
        )
        ctx.save_for_backward(x, index, weight, rstd)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, None, Tensor, None]:
        x, index, weight, rstd = ctx.saved_tensors
        kept, dim = grad_out.shape
        grad_x = torch.zeros_like(x, memory_format=torch.contiguous_format)
        programs = min(kept, 2 * processors(x))
        partial = x.new_empty(programs, dim, dtype=torch.float32)
        block = power_of_two(dim)
        _backward_kernel[(programs,)](
            grad_out.contiguous(),
            x,
            index,
            weight,
            rstd,
            grad_x,
            partial,
            *x.stride(),
            kept,
            dim,
            BLOCK_DIM=block,
            num_warps=min(max(block // 512, 1), 16),
        )
        return grad_x, None, partial.sum(0).to(weight.dtype), None
