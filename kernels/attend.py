"""Attention of every session's newest tokens over its own cache, caches and chunks ragged.

In a mixture-of-depths layer each session holds another number of keys, and adds another number of tokens a
step. A padded batch with a mask computes and reads the padding; here each program takes the lengths of its
own session from the device, so nothing is computed for padding and the host waits for nothing.

Softmax is online and float32, one pass over the keys (FlashAttention-2: Dao, 2023). Where few queries meet
many keys, as in decoding, the keys are split over programs and a second kernel joins the parts
(Flash-Decoding: https://pytorch.org/blog/flash-decoding). The query heads that share a key head
(grouped-query attention: Ainslie et al., EMNLP 2023) are packed into the rows of one block, so that a key is
read once for all of them and the matrix units have rows to work on.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.dispatch import jit, power_of_two, processors, runs_triton, tl, triton

TILE_BYTES = 16 << 10  # of keys; as much of values; two of each in flight fit into any card's shared memory
SHORTEST_SPLIT = 4  # blocks of keys, below which joining the parts costs more than it brings


def attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    starts: Tensor,
    longest: int,
    scale: float,
) -> Tensor:
    """Attention [total, heads, head_dim] of each session's newest tokens over its cache, causal among them.

    query [total, heads, head_dim] holds the sessions' queries one after the other, in one dtype with keys and
    values [sessions, kv_heads, capacity, head_dim], all strided as they like; heads is a multiple of
    kv_heads, head h reads key head h // (heads / kv_heads). lengths [sessions] int32 counts the tokens in
    each cache, the new ones already appended; starts [sessions + 1] int32 says where each session's queries
    begin in `query`, its last entry being total; a session may have none. `longest` is the most queries that
    any session has, or more: the host knows it, asking the device would wait. Query i of a session's n sees
    its first length - n + i + 1 keys. What lies in the slabs past the lengths is never read.

    Positions don't enter: the keys are rotated already, each kept token at its own position, with gaps where
    tokens skipped the layer, and the order in the cache is the order in time.

    Forward only, for inference. lengths >= n, starts and longest are not checked on the device.

    Raises ValueError for shapes or dtypes that don't fit, and where a gradient is wanted.
    """
    _check(query, keys, values, lengths, starts, longest)
    if not runs_triton(query):
        return _reference(query, keys, values, lengths, starts, scale)
    return _attend(query, keys, values, lengths, starts, longest, scale, _splits(query, keys, longest))


def _check(
    query: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, starts: Tensor, longest: int
) -> None:
    if query.dim() != 3:
        raise ValueError(f"query must be [total, heads, head_dim], got {tuple(query.shape)}")
    if keys.dim() != 4 or keys.shape[3] != query.shape[2] or keys.shape != values.shape:
        raise ValueError(
            f"keys and values must be [sessions, kv_heads, capacity, {query.shape[2]}], "
            f"got {tuple(keys.shape)} and {tuple(values.shape)}"
        )
    if keys.shape[1] == 0 or query.shape[1] % keys.shape[1]:
        raise ValueError(f"{query.shape[1]} query heads can't share {keys.shape[1]} key heads")
    if not query.dtype == keys.dtype == values.dtype:
        raise ValueError(
            f"query, keys and values must have one dtype, got {query.dtype}, {keys.dtype}, {values.dtype}"
        )
    if lengths.shape != keys.shape[:1] or lengths.dtype != torch.int32:
        raise ValueError(
            f"lengths must be [{keys.shape[0]}] int32, got {tuple(lengths.shape)} {lengths.dtype}"
        )
    if starts.shape != (keys.shape[0] + 1,) or starts.dtype != torch.int32:
        raise ValueError(
            f"starts must be [{keys.shape[0] + 1}] int32, got {tuple(starts.shape)} {starts.dtype}"
        )
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, keys, values)):
        raise ValueError("attend has no backward pass: call it under torch.no_grad()")
    if longest < 0:
        raise ValueError(f"longest must be 0 or more, got {longest}")


def _reference(
    query: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, starts: Tensor, scale: float
) -> Tensor:
    out = torch.empty_like(query)
    bounds = starts.tolist()
    for session, length in enumerate(lengths.tolist()):
        first, last = bounds[session], bounds[session + 1]
        if first == last:
            continue
        # Heads that share a key head become rows of one: PyTorch's own way with grouped queries is to repeat
        # the keys, and on the CPU to leave its fast kernel.
        grouped = query[first:last].unflatten(1, (keys.shape[1], -1)).permute(1, 2, 0, 3)
        mask = None
        if last - first > 1:
            mask = _causal_mask(last - first, length, grouped.shape[1], query.dtype, query.device)
        attended = F.scaled_dot_product_attention(
            grouped.flatten(1, 2)[None],  # [1, kv_heads, group * n, head_dim]
            keys[session : session + 1, :, :length],
            values[session : session + 1, :, :length],
            attn_mask=mask,
            scale=scale,
        )
        out[first:last] = attended[0].unflatten(1, grouped.shape[1:3]).permute(2, 0, 1, 3).flatten(1, 2)
    return out


@functools.lru_cache(maxsize=8)
def _causal_mask(queries: int, length: int, group: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What is added to scores, [group * queries, length]: most layers of a step need the same."""
    hidden = torch.ones(queries, length, dtype=torch.bool, device=device).triu(length - queries + 1)
    return (
        torch.zeros(queries, length, dtype=dtype, device=device)
        .masked_fill(hidden, -torch.inf)
        .repeat(group, 1)
    )


@jit
def _sweep(
    peak,
    total,
    mixed,
    rows,
    keys,
    values,
    first,
    stop,
    visible,
    column,
    key_stride,
    key_column_stride,
    value_stride,
    value_column_stride,
    scale,
    HEAD_DIM: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    EDGE: tl.constexpr,
):
    """Online softmax over the keys first..stop; only at the edge are there keys that some row doesn't see."""
    inside = (column < HEAD_DIM)[None, :]
    for start in range(first, stop, BLOCK_KEYS):
        key = start + tl.arange(0, BLOCK_KEYS)
        mask = inside
        if EDGE:
            mask = inside & (key < stop)[:, None]
        place = key.to(tl.int64)[:, None]
        block = tl.load(keys + place * key_stride + column[None, :] * key_column_stride, mask=mask, other=0.0)
        # Three TF32 products keep a float32 cache exact and on the matrix units; 16 bits don't need them.
        score = tl.dot(rows, tl.trans(block), input_precision="tf32x3") * scale  # [BLOCK_ROWS, BLOCK_KEYS]
        if EDGE:
            score = tl.where(key[None, :] < visible[:, None], score, float("-inf"))
        risen = tl.maximum(peak, tl.max(score, 1))
        # A row that has seen no key yet has no peak: 0 stands for it, lest -inf - -inf make NaN.
        level = tl.where(risen == float("-inf"), 0.0, risen)
        share = tl.exp2(score - level[:, None])
        fade = tl.exp2(peak - level)
        total = total * fade + tl.sum(share, 1)
        block = tl.load(
            values + place * value_stride + column[None, :] * value_column_stride, mask=mask, other=0.0
        )
        mixed = tl.dot(share.to(block.dtype), block, mixed * fade[:, None], input_precision="tf32x3")
        peak = risen
    return peak, total, mixed


@jit
def _attend_kernel(
    query,
    keys,
    values,
    lengths,
    starts,
    out,
    peaks,
    totals,
    scale,
    heads,
    kv_heads,
    query_stride,
    query_head_stride,
    query_column_stride,
    key_session_stride,
    key_head_stride,
    key_stride,
    key_column_stride,
    value_session_stride,
    value_head_stride,
    value_stride,
    value_column_stride,
    split_rows,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """One block of a session's (query, head of the group) rows over one split of its keys.

    Without splits `out` is the result, else each split's unnormalised part in float32, with its peak and
    total.
    """
    session = tl.program_id(1) // kv_heads
    kv_head = tl.program_id(1) % kv_heads
    split = tl.program_id(2)
    begin = tl.load(starts + session)
    queries = tl.load(starts + session + 1) - begin
    # The last queries see the most keys: they start first, so that no long program is left at the end.
    first_row = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_ROWS
    if first_row >= queries * GROUP:
        return
    length = tl.load(lengths + session)

    row = first_row + tl.arange(0, BLOCK_ROWS)
    asks = row // GROUP
    head = kv_head * GROUP + row % GROUP
    real = asks < queries
    column = tl.arange(0, BLOCK_DIM)
    mask = real[:, None] & (column < HEAD_DIM)[None, :]
    token = (begin + asks).to(tl.int64)
    rows = tl.load(
        query
        + token[:, None] * query_stride
        + head[:, None] * query_head_stride
        + column[None, :] * query_column_stride,
        mask=mask,
        other=0.0,
    )

    visible = length - queries + 1 + tl.minimum(asks, queries - 1)
    all_see = length - queries + 1 + first_row // GROUP
    some_see = length - queries + 1 + tl.minimum((first_row + BLOCK_ROWS - 1) // GROUP, queries - 1)
    # The host splits by shapes alone; how much a split is, each session's own length says.
    part = tl.cdiv(tl.cdiv(length, SPLITS), BLOCK_KEYS) * BLOCK_KEYS
    first = split * part
    stop = tl.minimum(first + part, some_see)
    edge = first + tl.maximum(tl.minimum(stop, all_see) - first, 0) // BLOCK_KEYS * BLOCK_KEYS

    keys += session.to(tl.int64) * key_session_stride + kv_head.to(tl.int64) * key_head_stride
    values += session.to(tl.int64) * value_session_stride + kv_head.to(tl.int64) * value_head_stride
    peak = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_ROWS], tl.float32)
    mixed = tl.zeros([BLOCK_ROWS, BLOCK_DIM], tl.float32)
    peak, total, mixed = _sweep(
        peak,
        total,
        mixed,
        rows,
        keys,
        values,
        first,
        edge,
        visible,
        column,
        key_stride,
        key_column_stride,
        value_stride,
        value_column_stride,
        scale,
        HEAD_DIM,
        BLOCK_KEYS,
        False,
    )
    peak, total, mixed = _sweep(
        peak,
        total,
        mixed,
        rows,
        keys,
        values,
        edge,
        stop,
        visible,
        column,
        key_stride,
        key_column_stride,
        value_stride,
        value_column_stride,
        scale,
        HEAD_DIM,
        BLOCK_KEYS,
        True,
    )

    target = token * heads + head
    if SPLITS > 1:
        target += split.to(tl.int64) * split_rows
        tl.store(peaks + target, peak, mask=real)
        tl.store(totals + target, total, mask=real)
    else:
        mixed /= total[:, None]
    there = out + target[:, None] * HEAD_DIM + column[None, :]
    tl.store(there, mixed.to(out.dtype.element_ty), mask=mask)


@jit
def _join_kernel(
    parts,
    peaks,
    totals,
    out,
    split_rows,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
):
    """The parts of one (token, head) row, each weighed by how far its peak lies below the highest."""
    row = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, BLOCK_SPLITS)
    real = split < SPLITS
    column = tl.arange(0, BLOCK_DIM)
    inside = column < HEAD_DIM
    place = split.to(tl.int64) * split_rows + row
    peak = tl.load(peaks + place, mask=real, other=float("-inf"))
    total = tl.load(totals + place, mask=real, other=0.0)
    part = tl.load(
        parts + place[:, None] * HEAD_DIM + column[None, :],
        mask=real[:, None] & inside[None, :],
        other=0.0,
    )
    weight = tl.exp2(peak - tl.max(peak, 0))  # 0 for a split without keys, whose peak is -inf
    mixed = tl.sum(part * weight[:, None], 0) / tl.sum(total * weight, 0)
    tl.store(out + row * HEAD_DIM + column, mixed.to(out.dtype.element_ty), mask=inside)


def _block_rows(query: Tensor, keys: Tensor, longest: int) -> int:
    """Rows of a block: the matrix units take 16 at least; more than the most would spill out of registers."""
    most = (128 if query.element_size() <= 2 else 32) // max(power_of_two(query.shape[2]) // 128, 1)
    return max(min(power_of_two(longest * query.shape[1] // keys.shape[1]), most), 16)


def _block_keys(keys: Tensor) -> int:
    return min(max(TILE_BYTES // (power_of_two(keys.shape[3]) * keys.element_size()), 16), 128)


def _splits(query: Tensor, keys: Tensor, longest: int) -> int:
    """In how many parts to take the keys: enough for two programs a multiprocessor, from shapes alone."""
    sessions, kv_heads, capacity, _ = keys.shape
    rows = longest * query.shape[1] // kv_heads
    programs = max(sessions * kv_heads * math.ceil(rows / _block_rows(query, keys, longest)), 1)
    return max(min(2 * processors(query) // programs, capacity // (SHORTEST_SPLIT * _block_keys(keys))), 1)


def _attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    starts: Tensor,
    longest: int,
    scale: float,
    splits: int,
) -> Tensor:
    """The kernels, with the keys in `splits` parts."""
    total, heads, head_dim = query.shape
    sessions, kv_heads = keys.shape[:2]
    group, block_rows = heads // kv_heads, _block_rows(query, keys, longest)
    block_dim = max(power_of_two(head_dim), 16)
    out = query.new_empty(total, heads, head_dim)
    parts, peaks, totals = out, out, out  # unused without splits
    if splits > 1:
        parts = query.new_empty(splits, total, heads, head_dim, dtype=torch.float32)
        peaks = query.new_empty(splits, total, heads, dtype=torch.float32)
        totals = torch.empty_like(peaks)
    _attend_kernel[(triton.cdiv(longest * group, block_rows), sessions * kv_heads, splits)](
        query,
        keys,
        values,
        lengths.contiguous(),
        starts.contiguous(),
        parts,
        peaks,
        totals,
        scale * math.log2(math.e),  # the softmax is taken in powers of two
        heads,
        kv_heads,
        *query.stride(),
        *keys.stride(),
        *values.stride(),
        total * heads,
        GROUP=group,
        HEAD_DIM=head_dim,
        BLOCK_DIM=block_dim,
        BLOCK_ROWS=block_rows,
        BLOCK_KEYS=_block_keys(keys),
        SPLITS=splits,
        num_warps=8 if block_rows == 128 else 4,
        num_stages=2,
    )
    if splits > 1:
        _join_kernel[(total * heads,)](
            parts,
            peaks,
            totals,
            out,
            total * heads,
            HEAD_DIM=head_dim,
            BLOCK_DIM=block_dim,
            SPLITS=splits,
            BLOCK_SPLITS=power_of_two(splits),
            num_warps=4,
        )
    return out
