"""Router score and selection: reference and kernel against plain maths."""

from __future__ import annotations

import math

import pytest
import torch
from checks import DEVICE, leaves, near, on_gpu, random
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels import route
from kernels.route import Routed, route_threshold, route_top_k

pytest.importorskip("triton")

SHAPES = [(2, 1, 8), (3, 3, 5), (2, 10, 48), (1, 50, 33), (1, 70, 16), (0, 4, 8)]
LARGE = [on_gpu((512, 50, 4096)), on_gpu((512, 10, 4096)), on_gpu((3, 577, 1000))]
PATHS = ["reference", "triton"]


def top_k(path: str, hidden: Tensor, weight: Tensor, k: int, keep_last: bool) -> Routed:
    if path == "reference":
        return route._reference_top_k(hidden, weight, k, keep_last)
    return Routed(*route._Route.apply(hidden, weight, k, None, keep_last))


def threshold(path: str, hidden: Tensor, weight: Tensor, cutoff: float | Tensor, keep_last: bool) -> Routed:
    if path == "reference":
        return route._reference_threshold(hidden, weight, cutoff, keep_last)
    return Routed(*route._Route.apply(hidden, weight, hidden.shape[1], cutoff, keep_last))


def by_hand(scores: list[float], k: int, keep_last: bool) -> list[int]:
    """The k best of one frame's scores, as one would do it with pencil and paper."""
    value = [-math.inf if math.isnan(score) else score for score in scores]
    places = range(len(value) - keep_last)
    best = sorted(places, key=lambda place: (-value[place], place))[: k - keep_last]
    return sorted(best + [len(value) - 1] * keep_last)


def whole(*shape: int, seed: int = 0) -> Tensor:
    """Whole numbers, so that sums are exact in any order and ties are frequent."""
    return (random(*shape, seed=seed) * 1.5).round()


def check_chosen(routed: Routed, hidden: Tensor, weight: Tensor) -> None:
    """Scores belong to their tokens, dtypes and shapes are as promised."""
    near(routed.all_scores, hidden.double() @ weight.double(), torch.float32)
    torch.testing.assert_close(routed.scores, routed.all_scores.gather(1, routed.index), rtol=0, atol=0)
    dtypes = [part.dtype for part in routed]
    assert dtypes == [torch.int64, torch.float32, torch.int32, torch.float32]
    assert routed.counts.shape == hidden.shape[:1]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("keep_last", [False, True])
@pytest.mark.parametrize("shape", SHAPES + LARGE)
def test_top_k(path: str, shape: tuple[int, int, int], keep_last: bool) -> None:
    hidden, weight = whole(*shape), whole(shape[2])
    for k in {1, math.ceil(0.2 * shape[1]), shape[1]}:
        routed = top_k(path, hidden, weight, k, keep_last)
        check_chosen(routed, hidden, weight)
        assert routed.index.shape == (shape[0], k)
        expected = [by_hand(row, k, keep_last) for row in routed.all_scores.tolist()]
        assert routed.index.tolist() == expected
        assert (routed.counts == k).all()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("keep_last", [False, True])
@pytest.mark.parametrize("shape", SHAPES + LARGE)
def test_threshold(path: str, shape: tuple[int, int, int], keep_last: bool) -> None:
    hidden, weight = whole(*shape), whole(shape[2])
    for cutoff in (-math.inf, 1.0, torch.tensor(1.0, device=DEVICE), math.inf):
        routed = threshold(path, hidden, weight, cutoff, keep_last)
        check_chosen(routed, hidden, weight)
        kept = routed.all_scores >= cutoff
        if keep_last:
            kept[:, -1] = True
        assert (routed.counts == kept.sum(1)).all()
        expected = [
            sorted(range(shape[1]), key=lambda place, row=row: not row[place]) for row in kept.tolist()
        ]
        assert routed.index.tolist() == expected


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strided_and_half(path: str, dtype: torch.dtype) -> None:
    """Frames a fixed distance apart in a stream are a view, and are read where they lie."""
    stream = random(4 * 11, 40, dtype=dtype)
    hidden = stream.view(4, 11, 40)[:, :10, ::2]
    weight = random(20, dtype=dtype)
    routed = top_k(path, hidden, weight, 2, True)
    check_chosen(routed, hidden, weight)
    assert torch.equal(routed.index, top_k(path, hidden.contiguous(), weight, 2, True).index)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("keep_last", [False, True])
def test_ties_nan_and_infinity(path: str, keep_last: bool) -> None:
    nan, inf = math.nan, math.inf
    rows = [[1.0] * 5, [nan] * 5, [nan, 2, nan, 2, 1], [inf, -inf, inf, nan, 0], [-inf, nan, -inf, nan, nan]]
    hidden = torch.tensor(rows, device=DEVICE)[..., None]  # [5, 5, 1]
    weight = torch.ones(1, device=DEVICE)
    for k in range(1, 6):
        index = top_k(path, hidden, weight, k, keep_last).index.tolist()
        assert index == [by_hand(row, k, keep_last) for row in rows]
    routed = threshold(path, hidden, weight, -1.0, keep_last)
    assert routed.counts.tolist() == ([5, 1, 3, 3, 1] if keep_last else [5, 0, 3, 3, 0])
    assert (routed.index.sort(1).values == torch.arange(5, device=DEVICE)).all()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("by_rank", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 10, 37), (2, 1, 300), on_gpu((64, 50, 4096))])
def test_gradients(path: str, by_rank: bool, dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    inputs = leaves(random(*shape, dtype=dtype), random(shape[2], dtype=dtype))
    chosen = (top_k(path, *inputs, 1, True)) if by_rank else threshold(path, *inputs, 0.1, False)
    exact = leaves(*inputs, dtype=torch.float64)
    all_scores = exact[0] @ exact[1]
    for found, true in (
        (chosen.scores, all_scores.gather(1, chosen.index)),
        (chosen.all_scores, all_scores),
        (
            torch.cat([chosen.scores, chosen.all_scores], 1),
            torch.cat([all_scores.gather(1, chosen.index), all_scores], 1),
        ),
    ):
        grads = torch.autograd.grad((found * found.detach()).sum(), inputs, retain_graph=True)
        trues = torch.autograd.grad((true * found.detach().double()).sum(), exact, retain_graph=True)
        for grad, want, leaf in zip(grads, trues, inputs, strict=True):
            assert grad.dtype == leaf.dtype
            near(grad, want, dtype)


@settings(max_examples=25, deadline=None)
@given(st.data())
@pytest.mark.parametrize("path", PATHS)
def test_what_holds_for_any_scores(path: str, data: st.DataObject) -> None:
    tokens = data.draw(st.integers(1, 20))
    k, keep_last = data.draw(st.integers(1, tokens)), data.draw(st.booleans())
    row = st.lists(st.floats(width=32, allow_nan=True), min_size=tokens, max_size=tokens)
    hidden = torch.tensor([data.draw(row)], device=DEVICE)[..., None]  # [1, tokens, 1]
    weight = torch.ones(1, device=DEVICE)
    index = top_k(path, hidden, weight, k, keep_last).index[0].tolist()
    assert len(index) == k and index == sorted(set(index))
    assert index[0] >= 0 and index[-1] < tokens
    assert not keep_last or index[-1] == tokens - 1
    routed = threshold(path, hidden, weight, data.draw(st.floats(-10, 10)), keep_last)
    count, order = int(routed.counts), routed.index[0].tolist()
    assert sorted(order) == list(range(tokens))
    assert order[:count] == sorted(order[:count]) and order[count:] == sorted(order[count:])
    assert not keep_last or order[count - 1] == tokens - 1


def test_public_functions() -> None:
    hidden, weight = random(4, 10, 12), random(12)
    routed = route_top_k(hidden, weight, 3, True)
    assert torch.equal(routed.index, route._reference_top_k(hidden, weight, 3, True).index)
    scores = (hidden.double() @ weight.double()).cpu()
    for bias in (0.3, torch.tensor([0.3], device=DEVICE, requires_grad=True)):
        routed = route_threshold(hidden, weight, bias, 0.6, False)
        kept = (scores + 0.3).sigmoid() >= 0.6
        assert routed.counts.tolist() == kept.sum(1).tolist()
    assert (route_threshold(hidden, weight, 0.0, 0.0, False).counts == 10).all()
    assert (route_threshold(hidden, weight, 0.0, 1.0, True).counts == 1).all()


def test_errors() -> None:
    hidden, weight = random(2, 5, 8), random(8)
    for k in (0, 6):
        with pytest.raises(ValueError, match=r"k must be within 1\.\.5"):
            route_top_k(hidden, weight, k, True)
    with pytest.raises(ValueError, match=r"hidden must be \[frames, tokens, dim\]"):
        route_top_k(hidden[0], weight, 1, True)
    with pytest.raises(ValueError, match="a token or more"):
        route_threshold(hidden[:, :0], weight, 0.0, 0.5, True)
    with pytest.raises(ValueError, match=r"weight must be \[8\]"):
        route_top_k(hidden, weight[:3], 1, True)
    with pytest.raises(ValueError, match=r"threshold must be within 0\.\.1"):
        route_threshold(hidden, weight, 0.0, 1.5, True)
    with pytest.raises(ValueError, match="bias must be a number"):
        route_threshold(hidden, weight, random(2), 0.5, True)
