"""Router score and selection of every frame in one pass over the hidden states.

VideoLLM-MoD (NeurIPS 2024) scores each vision token of a frame with one linear row and keeps the k best of
the frame; MoDification (2024) keeps what reaches a threshold instead. Both are decided within a frame, so one
program reads a frame once, holds its scores in registers, ranks them against each other and writes the kept
positions in order: no score matrix is sorted, and nothing waits for the host.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.dispatch import jit, power_of_two, processors, runs_triton, tl, triton

WIDEST_FRAME = 1024  # tokens whose scores and ranks one program still holds in registers


class Routed(NamedTuple):
    """What a router chose in each frame."""

    index: Tensor  # type: ignore[assignment]  # [frames, capacity] int64, positions in the frame, ascending
    scores: Tensor  # [frames, capacity] float32, router scores of these tokens, differentiable
    counts: Tensor  # [frames] int32, how many of `index` are kept
    all_scores: Tensor  # [frames, tokens] float32, router scores of all tokens, differentiable


def route_top_k(hidden: Tensor, weight: Tensor, k: int, keep_last: bool) -> Routed:
    """Keep the k tokens of each frame that the router scores highest (VideoLLM-MoD, NeurIPS 2024).

    hidden [frames, tokens, dim] and weight [dim] are floating point, strided as they like; scores add up in
    float32. Of equal scores the earlier token wins, NaN counts as the lowest score. `keep_last` puts each
    frame's last token, from which the assistant decides to speak, always among the k.

    Returns `Routed` with capacity k, every slot kept. Gradients flow from `scores` and `all_scores` to hidden
    and weight; `hidden` itself is saved for them, so it mustn't be changed in place before the backward pass.

    Raises ValueError for shapes that don't fit, and for k outside 1..tokens.
    """
    _check(hidden, weight)
    if not 1 <= k <= hidden.shape[1]:
        raise ValueError(f"k must be within 1..{hidden.shape[1]} (tokens of a frame), got {k}")
    if _fits(hidden):
        return Routed(*_Route.apply(hidden, weight, k, None, keep_last))
    return _reference_top_k(hidden, weight, k, keep_last)


def route_threshold(
    hidden: Tensor, weight: Tensor, bias: float | Tensor, threshold: float, keep_last: bool
) -> Routed:
    """Keep the tokens of each frame with sigmoid(score + bias) >= threshold (MoDification, 2024).

    hidden [frames, tokens, dim] and weight [dim] are floating point, strided as they like; scores add up in
    float32. The bias, a number or a tensor of one element, moves the choice alone: `scores` are without it. A
    NaN score isn't kept. `keep_last` keeps each frame's last token whatever its score.

    Returns `Routed` with capacity tokens: each row of `index` is a permutation, the kept tokens in order
    first (`counts` of them), then the skipped ones in order. Gradients as in `route_top_k`.

    Raises ValueError for shapes that don't fit, and for a threshold outside 0..1.
    """
    _check(hidden, weight)
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be within 0..1, got {threshold}")
    if isinstance(bias, Tensor) and bias.numel() != 1:
        raise ValueError(f"bias must be a number or a tensor of one element, got shape {tuple(bias.shape)}")
    cutoff = _cutoff(bias, threshold)
    if _fits(hidden):
        return Routed(*_Route.apply(hidden, weight, hidden.shape[1], cutoff, keep_last))
    return _reference_threshold(hidden, weight, cutoff, keep_last)


def _check(hidden: Tensor, weight: Tensor) -> None:
    if hidden.dim() != 3 or hidden.shape[1] == 0:
        raise ValueError(
            f"hidden must be [frames, tokens, dim] with a token or more, got {tuple(hidden.shape)}"
        )
    if weight.shape != hidden.shape[2:]:
        raise ValueError(f"weight must be [{hidden.shape[2]}], as hidden's dim, got {tuple(weight.shape)}")


def _fits(hidden: Tensor) -> bool:
    return runs_triton(hidden) and hidden.shape[1] <= WIDEST_FRAME


def _cutoff(bias: float | Tensor, threshold: float) -> float | Tensor:
    """The raw score from which a token is kept. The sigmoid rises, so comparing in front of it is the same
    choice, without a float32 sigmoid that rounds to 1 from 17 on."""
    logit = {0.0: -math.inf, 1.0: math.inf}.get(threshold)
    if logit is None:
        logit = math.log(threshold) - math.log1p(-threshold)
    return logit - (bias.detach().float().reshape(()) if isinstance(bias, Tensor) else bias)


def _reference_top_k(hidden: Tensor, weight: Tensor, k: int, keep_last: bool) -> Routed:
    all_scores = hidden.float() @ weight.float()  # [frames, tokens]
    ranked = all_scores.detach()
    ranked = ranked.masked_fill(ranked.isnan(), -torch.inf)
    rivals = ranked[:, : ranked.shape[1] - keep_last]
    winners = rivals.argsort(dim=1, descending=True, stable=True)[:, : k - keep_last]
    kept = torch.zeros_like(ranked, dtype=torch.bool).scatter(1, winners, True)
    return _kept_first(all_scores, kept, k, keep_last)


def _reference_threshold(hidden: Tensor, weight: Tensor, cutoff: float | Tensor, keep_last: bool) -> Routed:
    all_scores = hidden.float() @ weight.float()  # [frames, tokens]
    return _kept_first(all_scores, all_scores.detach() >= cutoff, all_scores.shape[1], keep_last)


def _kept_first(all_scores: Tensor, kept: Tensor, capacity: int, keep_last: bool) -> Routed:
    if keep_last:
        kept[:, -1] = True
    index = kept.logical_not().to(torch.uint8).argsort(dim=1, stable=True)[:, :capacity]
    return Routed(index, all_scores.gather(1, index), kept.sum(1, dtype=torch.int32), all_scores)


@jit
def _forward_kernel(
    hidden,
    weight,
    cutoff,  # a number, or where one lies on the device
    index,
    scores,
    counts,
    all_scores,
    frame_stride,
    token_stride,
    column_stride,
    tokens,
    dim,
    capacity,
    TOP_K: tl.constexpr,
    KEEP_LAST: tl.constexpr,  # 0 or 1
    CUTOFF_ON_DEVICE: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_RIVALS: tl.constexpr,
):
    frame = tl.program_id(0).to(tl.int64)
    token = tl.arange(0, TOKENS)
    real = token < tokens
    rows = hidden + frame * frame_stride + token.to(tl.int64) * token_stride

    # One product a column and a single sum at the end: no exchange between threads inside the loop.
    product = tl.zeros([TOKENS, BLOCK_DIM], tl.float32)
    for start in range(0, dim, BLOCK_DIM):
        column = start + tl.arange(0, BLOCK_DIM)
        inside = column < dim
        block = tl.load(
            rows[:, None] + column[None, :] * column_stride, mask=real[:, None] & inside[None, :], other=0.0
        )
        row = tl.load(weight + column, mask=inside, other=0.0)
        product += block.to(tl.float32) * row.to(tl.float32)[None, :]
    score = tl.sum(product, 1)  # [TOKENS]
    tl.store(all_scores + frame * tokens + token, score, mask=real)

    if TOP_K:
        # A token's rank is how many rivals beat it: a permutation whatever the scores, once NaN has a place.
        rivals = tokens - KEEP_LAST
        value = tl.where(score == score, score, float("-inf"))
        rank = tl.zeros([TOKENS], tl.int32)
        tl.debug_barrier()  # the scores just stored are read back along the other axis
        for start in range(0, rivals, BLOCK_RIVALS):
            rival = start + tl.arange(0, BLOCK_RIVALS)
            other = tl.load(all_scores + frame * tokens + rival, mask=rival < rivals, other=float("-inf"))
            other = tl.where(other == other, other, float("-inf"))
            ahead = (other[None, :] == value[:, None]) & (rival[None, :] < token[:, None])
            beats = ((other[None, :] > value[:, None]) | ahead) & (rival < rivals)[None, :]
            rank += tl.sum(beats.to(tl.int32), 1)
        kept = (rank < capacity - KEEP_LAST) & (token < rivals)
    else:
        if CUTOFF_ON_DEVICE:
            cutoff = tl.load(cutoff)
        kept = (score >= cutoff) & real
    if KEEP_LAST:
        kept = kept | (token == tokens - 1)

    chosen = kept.to(tl.int32)
    count = tl.sum(chosen, 0)
    before = tl.cumsum(chosen, 0) - chosen  # kept tokens in front of each
    slot = tl.where(kept, before, count + token - before)
    written = real & (slot < capacity)
    tl.store(index + frame * capacity + slot, token.to(tl.int64), mask=written)
    tl.store(scores + frame * capacity + slot, score, mask=written)
    tl.store(counts + frame, count)


@jit
def _backward_kernel(
    grad_scores,
    hidden,
    weight,
    grad_hidden,
    partial,
    frame_stride,
    token_stride,
    column_stride,
    tokens,
    rows,
    dim,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    program = tl.program_id(0)
    column = tl.program_id(1) * BLOCK_DIM + tl.arange(0, BLOCK_DIM)
    inside = column < dim
    factor = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    product = tl.zeros([BLOCK_ROWS, BLOCK_DIM], tl.float32)
    for start in range(program * BLOCK_ROWS, rows, tl.num_programs(0) * BLOCK_ROWS):
        row = start + tl.arange(0, BLOCK_ROWS)
        real = row < rows
        mask = real[:, None] & inside[None, :]
        place = (row // tokens).to(tl.int64) * frame_stride + (row % tokens).to(tl.int64) * token_stride
        block = tl.load(hidden + place[:, None] + column[None, :] * column_stride, mask=mask, other=0.0)
        grad = tl.load(grad_scores + row, mask=real, other=0.0)
        product += grad[:, None] * block.to(tl.float32)
        there = grad_hidden + row.to(tl.int64)[:, None] * dim + column[None, :]
        tl.store(there, (grad[:, None] * factor[None, :]).to(grad_hidden.dtype.element_ty), mask=mask)
    tl.store(partial + program.to(tl.int64) * dim + column, tl.sum(product, 0), mask=inside)


class _Route(torch.autograd.Function):
    """The kernel and its gradients; `cutoff` None means the `capacity` best."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        capacity: int,
        cutoff: float | Tensor | None,
        keep_last: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        frames, tokens, dim = hidden.shape
        weight = weight.contiguous()
        index = hidden.new_empty(frames, capacity, dtype=torch.int64)
        scores = hidden.new_empty(frames, capacity, dtype=torch.float32)
        counts = hidden.new_empty(frames, dtype=torch.int32)
        all_scores = hidden.new_empty(frames, tokens, dtype=torch.float32)
        width = max(power_of_two(tokens), 16)
        _forward_kernel[(frames,)](
            hidden,
            weight,
            0.0 if cutoff is None else cutoff,
            index,
            scores,
            counts,
            all_scores,
            *hidden.stride(),
            tokens,
            dim,
            capacity,
            TOP_K=cutoff is None,
            KEEP_LAST=int(keep_last),
            CUTOFF_ON_DEVICE=isinstance(cutoff, Tensor),
            TOKENS=width,
            BLOCK_DIM=max(8192 // width, 16),
            BLOCK_RIVALS=min(width, max(8192 // width, 16)),
            num_warps=8,
        )
        ctx.save_for_backward(hidden, weight, index)
        ctx.mark_non_differentiable(index, counts)
        ctx.set_materialize_grads(False)
        return index, scores, counts, all_scores

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, _index: None, grad_scores: Tensor | None, _counts: None, grad_all: Tensor | None
    ) -> tuple[Tensor, Tensor, None, None, None]:
        hidden, weight, index = ctx.saved_tensors
        frames, tokens, dim = hidden.shape
        if grad_all is None:
            grad_all = hidden.new_zeros(frames, tokens, dtype=torch.float32)
        if grad_scores is not None:
            grad_all = grad_all.scatter_add(1, index, grad_scores)
        grad_hidden = torch.empty_like(hidden, memory_format=torch.contiguous_format)
        rows, block_rows, block_dim = frames * tokens, 32, 256
        columns = triton.cdiv(dim, block_dim)
        # Enough programs to fill the card four times over, few enough that their partial sums stay small.
        programs = min(triton.cdiv(rows, block_rows), triton.cdiv(4 * processors(hidden), columns))
        partial = hidden.new_empty(programs, dim, dtype=torch.float32)
        _backward_kernel[(programs, columns)](
            grad_all.contiguous(),
            hidden,
            weight,
            grad_hidden,
            partial,
            *hidden.stride(),
            tokens,
            rows,
            dim,
            BLOCK_ROWS=block_rows,
            BLOCK_DIM=block_dim,
            num_warps=8,
        )
        return grad_hidden, partial.sum(0).to(weight.dtype), None, None, None
