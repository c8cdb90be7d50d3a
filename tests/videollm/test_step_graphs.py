"""Steps replayed as graphs read what steps read layer by layer.

Without a GPU the graphs are tapes of PyTorch's operations: like a CUDA graph a tape knows nothing of Python,
reads and writes the memory that it was recorded with, and is wrong where a step depends on anything else.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import small_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from videollm import VideoLLM, layer_budget, packed, step_graphs
from videollm.budgets import Budgets
from videollm.eviction import H2OPolicy
from videollm.layer_budget import LayerBudgetCache
from videollm.packed import Chunk, Step, read, run_layers
from videollm.places import FramePlaces
from videollm.slab import Packing
from videollm.step_graphs import CudaCapture, StepGraphs

SLOTS = 3
FRAMES = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class Tape(TorchDispatchMode):
    """Keeps every operation, and does them again on the same memory."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        for func, args, kwargs, kept in self.calls:
            result = func(*args, **kwargs)
            for old, new in zip(_tensors(kept), _tensors(result), strict=True):
                if old.data_ptr() != new.data_ptr():  # neither a view nor in place
                    old.copy_(new)


class NothingFromTheHost(TorchDispatchMode):
    """A tensor of the host beside those of the device would be copied to it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        assert all(tensor.is_meta for tensor in _tensors([args, kwargs, result])), func
        return result


class TapeCapture:
    """In place of `CudaCapture`."""

    def __init__(self) -> None:
        self.captured = 0

    def __call__(self, work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        self.captured += 1
        with Tape() as tape:
            result = work()  # what it appends must not count, as in a CUDA graph's warming up
        return tape.replay, result


def _tensors(result: Any) -> list[Tensor]:
    return [part for part in tree_leaves(result) if isinstance(part, Tensor)]


def masked_attention(
    query: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, starts: Tensor, longest: int, scale: float
) -> Tensor:
    """`attend` from what lies on the device alone, as its kernel does."""
    place = torch.arange(len(query), device=query.device)
    slots = torch.searchsorted(starts[1:].contiguous(), place, right=True)
    last = lengths[slots] - (starts[slots + 1] - 1 - place)  # how much each token sees
    groups = query.shape[1] // keys.shape[1]
    keys, values = (part[slots].repeat_interleave(groups, 1) for part in (keys, values))
    seen = torch.arange(keys.shape[2], device=query.device) < last[:, None, None]
    scores = torch.einsum("thd,thcd->thc", query, keys).mul(scale).masked_fill(~seen, -torch.inf)
    return torch.einsum("thc,thcd->thd", scores.softmax(-1), values.masked_fill(~seen[..., None], 0))


@pytest.fixture(autouse=True)
def attention_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "attend", masked_attention)
    monkeypatch.setattr(step_graphs, "OFTEN", 1)


def frame_ids(model: VideoLLM) -> list[int]:
    return [model.config.frame_token_id] * model.config.tokens_per_frame


def chunk_of(model: VideoLLM, slot: int, kind: str, word: int) -> Chunk:
    frame = frame_ids(model)
    if kind == "frame":
        return Chunk(slot, [word, *frame], FRAMES[word % 6][None])
    if kind == "frames":
        return Chunk(slot, [*frame, word, *frame], FRAMES[[word % 6, 1]])
    return Chunk(slot, [word] * (1 if kind == "word" else 4))


def caches(model: VideoLLM, evicting: bool) -> tuple[LayerBudgetCache, LayerBudgetCache]:
    if not evicting:
        model.config.context_tokens = 200
        return LayerBudgetCache(model, SLOTS), LayerBudgetCache(model, SLOTS)
    budgets = Budgets((28,) * model.config.text_config.num_hidden_layers, headroom=24, sinks=2, window=6)
    one, two = (LayerBudgetCache(model, SLOTS, budgets, H2OPolicy()) for _ in range(2))
    return one, two


KIND = st.sampled_from(["word", "words", "frame", "frames", "none"])
STEPS = st.lists(
    st.tuples(
        st.sampled_from([("word", "none", "none"), ("frame", "word", "word"), ("frame", "frame", "none")])
        | st.tuples(KIND, KIND, KIND),
        st.integers(0, 99),
        st.sampled_from(["", "", "rewind", "reset"]),
        st.permutations(range(SLOTS)),
    ),
    min_size=4,
    max_size=14,
)


@given(
    steps=STEPS,
    router=st.sampled_from(["top_k", "p_mod", "threshold", "random", "uniform", "layer_skip", "full"]),
    evicting=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_any_steps_read_the_same(steps: list[Any], router: str, evicting: bool) -> None:
    model = small_model(router=router)
    plain, graphed = caches(model, evicting)
    graphs = StepGraphs(model, graphed, TapeCapture())
    for kinds, word, after, order in steps:
        chunks = [
            chunk_of(model, slot, kind, word + slot)
            for slot, kind in zip(order, kinds, strict=True)
            if kind != "none"
        ]
        chunks = [chunk for chunk in chunks if len(chunk.ids) <= plain.room(chunk.slot)]
        if not chunks:
            continue
        wanted = read(model, chunks, plain)
        torch.testing.assert_close(read(model, chunks, graphed, graphs), wanted, atol=1e-5, rtol=1e-5)
        for cache in (plain, graphed):
            if after == "rewind":
                cache.rewind(chunks[0].slot, 1)
            elif after == "reset":
                cache.reset(chunks[-1].slot)
    torch.testing.assert_close(graphed.lengths, plain.lengths)
    assert graphed.evictions == plain.evictions
    for slot in range(SLOTS):
        one, two = plain.state(slot), graphed.state(slot)
        assert one.positions == two.positions and one.seen == two.seen
        for wanted_layer, found_layer in zip(one.layers, two.layers, strict=True):
            torch.testing.assert_close(found_layer, wanted_layer, atol=1e-5, rtol=1e-5)


def words(model: VideoLLM, cache: LayerBudgetCache, graphs: StepGraphs, counts: list[int]) -> None:
    for count in counts:
        read(model, [Chunk(0, [5] * count)], cache, graphs)


def test_a_shape_is_captured_once_it_has_come_often(tiny: VideoLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_graphs, "MOST_SHAPES", 2)
    monkeypatch.setattr(step_graphs, "MOST_TOKENS", 3)
    cache, capture = LayerBudgetCache(tiny, SLOTS), TapeCapture()
    graphs = StepGraphs(tiny, cache, capture)
    for counts, captured in [
        ([1], 0),
        ([1, 1], 1),
        ([2, 2], 2),
        ([1], 2),
        ([3], 2),  # and with it two tokens are forgotten, which came before one
        ([2], 2),
        ([2], 3),
        ([4, 4, 4], 3),  # too long to be worth it
    ]:
        words(tiny, cache, graphs, counts)
        assert capture.captured == captured, counts
    read(tiny, [Chunk(1, [5]), Chunk(2, [5])], cache, graphs)  # two tokens, but of two streams
    assert capture.captured == 3


def test_a_router_that_counts_is_not_captured_but_with_words() -> None:
    model = small_model(router="threshold")
    cache, capture = LayerBudgetCache(model, SLOTS), TapeCapture()
    graphs = StepGraphs(model, cache, capture)
    for _ in range(3):
        read(model, [chunk_of(model, 0, "frame", 1)], cache, graphs)
    assert capture.captured == 0
    words(model, cache, graphs, [1, 1])
    assert capture.captured == 1
    everything = small_model(router="threshold", routes="all")
    cache, capture = LayerBudgetCache(everything, SLOTS), TapeCapture()
    words(everything, cache, StepGraphs(everything, cache, capture), [1, 1, 1])
    assert capture.captured == 0


def test_where_capturing_fails_steps_run_as_they_are(tiny: VideoLLM) -> None:
    def full(work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        work()
        raise torch.OutOfMemoryError("no memory for a graph")

    plain, cache = LayerBudgetCache(tiny, SLOTS), LayerBudgetCache(tiny, SLOTS)
    graphs = StepGraphs(tiny, cache, full)
    frame = [chunk_of(tiny, 0, "frame", 3)]
    wanted = [read(tiny, frame, plain) for _ in range(4)]
    found = [read(tiny, frame, cache, graphs)]
    with pytest.warns(UserWarning, match="without CUDA graphs.*no memory for a graph"):
        found.append(read(tiny, frame, cache, graphs))
    found += [read(tiny, frame, cache, graphs) for _ in range(2)]  # and no second warning
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_a_copied_stream_has_graphs_of_its_own(tiny: VideoLLM) -> None:
    cache = LayerBudgetCache(tiny, SLOTS)
    graphs = StepGraphs(tiny, cache, TapeCapture())
    words(tiny, cache, graphs, [1, 1, 1])
    both = [cache, graphs]
    copied, its = copy.deepcopy(both, {id(tiny): tiny})
    assert its._cache is copied and not its._shapes
    words(tiny, cache, graphs, [1])
    assert copied.seen[0] == 3 and copied.lengths[:, 0].tolist() == [3] * len(copied.layers)


@pytest.mark.parametrize(
    "router", ["top_k", "p_mod", "random", "uniform", "layer_skip", "early_exit", "full"]
)
@pytest.mark.parametrize("evicting", [False, True])
def test_nothing_in_a_step_waits_for_the_device(
    router: str, evicting: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors without values, which to look at is an error, as it is to bring any from the host."""
    monkeypatch.setattr(layer_budget, "fingerprint", lambda model: "")
    with torch.device("meta"), torch.inference_mode():
        model = small_model(router=router)
        cache, _ = caches(model, evicting)
        tokens, layers = 2 * model.config.tokens_per_frame + 3, len(cache.layers)
        hidden = torch.empty(1, tokens, model.config.text_config.hidden_size)
        rotary = torch.empty(layers if evicting else 1, 1, tokens, cache.layers[0].keys.shape[-1])
        places = torch.empty(2, model.config.tokens_per_frame, dtype=torch.long)
        packing = Packing(
            cache,
            slots=torch.empty(tokens, dtype=torch.long),
            starts=torch.empty(SLOTS + 1, dtype=torch.int32),
            sizes=np.array([tokens - 1, 0, 1]),
            positions=torch.empty(tokens, dtype=torch.long),
            marks=torch.empty(layers, tokens, dtype=torch.int32) if evicting else None,
            on_device=True,
        )
        frames = FramePlaces(places, torch.empty(tokens, dtype=torch.bool))
        with NothingFromTheHost():
            out = run_layers(model, Step(hidden, (rotary, rotary), frames, packing))
        assert out.shape == hidden.shape


@pytest.mark.gpu
@pytest.mark.parametrize("router", ["top_k", "p_mod", "uniform", "full"])
@pytest.mark.parametrize("evicting", [False, True])
def test_cuda_graphs_read_the_same(router: str, evicting: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the kernel itself
    model = small_model(router=router).cuda()
    plain, graphed = caches(model, evicting)
    graphs = StepGraphs(model, graphed, CudaCapture())
    for word in range(24):
        chunks = [chunk_of(model, 0, "frame", word), chunk_of(model, 2, "word", word)]
        wanted = read(model, chunks, plain)
        torch.testing.assert_close(read(model, chunks, graphed, graphs), wanted, atol=1e-4, rtol=1e-4)
        if word % 5 == 4:
            for cache in (plain, graphed):
                cache.rewind(0, 3)
    torch.testing.assert_close(graphed.lengths, plain.lengths)
    assert any(met.graph for met in graphs._shapes.values())
