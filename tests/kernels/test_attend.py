"""Ragged attention: reference and kernels against plain maths."""

from __future__ import annotations

import itertools

import pytest
import torch
from checks import DEVICE, near, on_gpu, random
from torch import Tensor

from kernels import attend as module
from kernels.attend import attend

pytest.importorskip("triton")

# Queries and length of each session, query heads, key heads, head_dim, capacity.
CASES = {
    "decode": ([1, 1, 1], [70, 1, 33], 8, 2, 16, 77),
    "frame": ([3, 0, 10], [21, 40, 10], 4, 4, 64, 40),
    "prefill": ([50, 0], [50, 0], 6, 2, 32, 51),
    "group of three": ([11, 2], [130, 2], 3, 1, 128, 131),
    "odd head_dim": ([2, 5], [9, 40], 4, 2, 20, 41),
    "nobody asks": ([0, 0], [3, 4], 4, 2, 16, 5),
}
LARGE = {
    "decode, 8B": ([1] * 7, [4096, 1, 777, 2048, 4095, 63, 65], 32, 8, 128, 4096),
    "frame, 8B": ([50, 10, 2, 0], [4000, 10, 777, 3], 32, 8, 128, 4096),
    "prefill, 8B": ([1024, 999], [1024, 3000], 32, 8, 128, 3001),
    "head_dim 256": ([10, 300], [1500, 300], 8, 2, 256, 1500),
}
PATHS = {
    "reference": lambda q, k, v, lengths, starts, longest, scale: module._reference(
        q, k, v, lengths, starts, scale
    ),
    "whole": lambda *arguments: module._attend(*arguments, splits=1),
    "split": lambda *arguments: module._attend(*arguments, splits=3),
    "five parts": lambda *arguments: module._attend(*arguments, splits=5),
}


def make(case: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, int, float]:
    counts, lengths, heads, kv_heads, head_dim, capacity = (CASES | LARGE)[case]
    keys, values = (random(len(lengths), kv_heads, capacity, head_dim, dtype=dtype, seed=s) for s in (1, 2))
    for session, length in enumerate(lengths):  # what lies past the length is never read
        keys[session, :, length:] = torch.nan
        values[session, :, length:] = torch.nan
    starts = torch.tensor([0, *itertools.accumulate(counts)], dtype=torch.int32, device=DEVICE)
    lengths = torch.tensor(lengths, dtype=torch.int32, device=DEVICE)
    query = random(sum(counts), heads, head_dim, dtype=dtype)
    return query, keys, values, lengths, starts, max(counts), head_dim**-0.5


def exactly(
    query: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, starts: Tensor, longest: int, scale: float
) -> Tensor:
    """One query and one head at a time, in float64."""
    out = torch.zeros(query.shape, dtype=torch.float64, device=query.device)
    group = query.shape[1] // keys.shape[1]
    for session in range(len(lengths)):
        first, last = starts[session], starts[session + 1]
        for token in range(first, last):
            sees = lengths[session] - (last - 1 - token)
            key = keys[session, :, :sees].double().repeat_interleave(group, 0)  # [heads, sees, head_dim]
            value = values[session, :, :sees].double().repeat_interleave(group, 0)
            weight = (torch.einsum("hd,hsd->hs", query[token].double(), key) * scale).softmax(-1)
            out[token] = torch.einsum("hs,hsd->hd", weight, value)
    return out


# The interpreter multiplies bfloat16 matrices as if their bits were whole numbers: that dtype needs a GPU.
DTYPES = [torch.float32, torch.float16, on_gpu(torch.bfloat16)]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", [*CASES, *(on_gpu(case) for case in LARGE)])
def test_against_plain_maths(case: str, dtype: torch.dtype, path: str) -> None:
    arguments = make(case, dtype)
    out = PATHS[path](*arguments)
    assert out.dtype == dtype
    near(out, exactly(*arguments), dtype)


@pytest.mark.parametrize("path", PATHS)
def test_strided_slabs_and_a_generous_longest(path: str) -> None:
    """A layer's cache may be a view into a larger one; the host may know no more than a bound."""
    query, keys, values, lengths, starts, longest, scale = make("frame", torch.float32)
    wide = torch.stack([keys, values], 3)  # [sessions, kv_heads, capacity, 2, head_dim]
    out = PATHS[path](query, wide[..., 0, :], wide[..., 1, :], lengths, starts, 4 * longest, scale)
    near(out, exactly(query, keys, values, lengths, starts, longest, scale), torch.float32)


def test_large_scores_stay_finite() -> None:
    query, *rest = make("decode", torch.float32)
    near(module._attend(query * 1e4, *rest, splits=3), exactly(query * 1e4, *rest), torch.float32)


def test_splits_follow_from_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "processors", lambda tensor: 132)
    query = torch.empty(4, 32, 128, dtype=torch.bfloat16, device="meta")
    slab = torch.empty(4, 8, 4096, 128, dtype=torch.bfloat16, device="meta")
    assert module._splits(query, slab[:1], 1) == 16  # as many as there are runs of four blocks
    assert module._splits(query, slab, 1) == 8
    assert module._splits(query, slab, 4096) == 1
    assert module._splits(query, slab[:, :, :100], 1) == 1
    assert module._splits(query, slab[:0], 0) >= 1


def test_public_function_and_errors() -> None:
    query, keys, values, lengths, starts, longest, scale = arguments = make("frame", torch.float32)
    near(attend(*arguments), exactly(*arguments), torch.float32)
    with pytest.raises(ValueError, match=r"query must be \[total, heads, head_dim\]"):
        attend(query[0], keys, values, lengths, starts, longest, scale)
    with pytest.raises(ValueError, match="keys and values must be"):
        attend(query, keys, values[:, :, :3], lengths, starts, longest, scale)
    with pytest.raises(ValueError, match="3 query heads can't share 4 key heads"):
        attend(query[:, :3], keys, values, lengths, starts, longest, scale)
    with pytest.raises(ValueError, match="must have one dtype"):
        attend(query.half(), keys, values, lengths, starts, longest, scale)
    with pytest.raises(ValueError, match=r"lengths must be \[3\] int32"):
        attend(query, keys, values, lengths.long(), starts, longest, scale)
    with pytest.raises(ValueError, match=r"starts must be \[4\] int32"):
        attend(query, keys, values, lengths, starts[1:], longest, scale)
    with pytest.raises(ValueError, match="no backward pass"):
        attend(query.requires_grad_(), keys, values, lengths, starts, longest, scale)
    query = query.detach()
    with pytest.raises(ValueError, match="longest must be 0 or more"):
        attend(query, keys, values, lengths, starts, -1, scale)
