"""CUDA graphs of decoder steps: the GPU launches a whole step at once, and Python stays out of it.

A small step, the next word of some replies or the frame of a few streams, is over sooner on a GPU than Python
has launched its kernels. A graph holds the launches of one shape of step; it always reads and writes the
same memory, so that a step is copied in, run, and read from there. The slabs of the cache never move, and
how much of them is filled lies on the device: a graph stays right while streams come, grow and go.
"""

from __future__ import annotations

import copy
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from videollm.depth import MixtureOfDepthsLayer
from videollm.layer_budget import LayerBudgetCache
from videollm.packed import Step, run_layers
from videollm.places import FramePlaces
from videollm.slab import Packing, Stored

if TYPE_CHECKING:
    from videollm.depth_lm import DepthLM

MOST_TOKENS = 512  # of a step; the arithmetic of larger ones takes longer than their launches
MOST_SHAPES = 64
OFTEN = 8  # to capture a step costs about as much as a few steps

Work = Callable[[], Tensor]
Capture = Callable[[Work], tuple[Callable[[], None], Tensor]]
"""Makes of some work on the device a function that does it again, and the memory of its result."""


class CudaCapture:
    """Captures with `torch.cuda.graph`; all graphs share one pool, because they never run side by side."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Work) -> tuple[Callable[[], None], Tensor]:
        # Once as it is, on another stream: kernels are compiled and libraries find their workspaces.
        current, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(current)
        with torch.cuda.stream(aside):
            work()
        current.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # What other threads of the process do meanwhile, a server's for one, is not captured and no error.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            result = work()
        return graph.replay, result


class _Shape(NamedTuple):
    """What two steps share that one graph can run."""

    tokens: int
    frames: int
    longest: int  # how many tokens its longest chunk has
    alone: bool  # whether all of it is of one stream


@dataclass
class _Met:
    """A shape that has come so often."""

    times: int = 0
    graph: _Graph | None = None


@dataclass(frozen=True)
class _Graph:
    inputs: list[Tensor]
    replay: Callable[[], None]
    hidden: Tensor
    stored: list[Stored | None]  # by each layer


class StepGraphs:
    """The graphs of one model's steps over one cache.

    A shape is captured once it has come `OFTEN`, and forgotten when `MOST_SHAPES` others have come since it
    was last seen. Where capturing fails, for lack of memory or because a layer waits for the device, one
    warning says so, and steps run as they are.
    """

    def __init__(self, model: DepthLM, cache: LayerBudgetCache, capture: Capture | None) -> None:
        self._model = model
        self._cache = cache
        self._capture = capture
        self._shapes: OrderedDict[_Shape, _Met] = OrderedDict()
        routers = [layer.router for layer in model.model.layers if isinstance(layer, MixtureOfDepthsLayer)]
        self._fixed = all(router.fixed for router in routers)
        self._text_fixed = self._fixed or model.config.depth_config.routes == "frames"

    def __deepcopy__(self, memo: dict[int, Any]) -> StepGraphs:
        """Graphs hold the cache's memory: a copied cache needs its own."""
        return StepGraphs(self._model, copy.deepcopy(self._cache, memo), self._capture)

    def run(self, step: Step) -> Tensor:
        """What `run_layers` returns, [1, total, dim], valid until the next step."""
        fixed = self._text_fixed if step.frames is None else self._fixed
        if self._capture is None or not fixed or step.hidden.shape[1] > MOST_TOKENS:
            return run_layers(self._model, step)
        met = self._meet(_shape(step))
        if met.times <= OFTEN:
            return run_layers(self._model, step)
        if met.graph is None:
            try:
                met.graph = self._captured(step, self._capture)
            except RuntimeError as error:
                warnings.warn(f"steps run without CUDA graphs, capturing one failed: {error}", stacklevel=2)
                self._capture = None
                self._shapes.clear()
                return run_layers(self._model, step)
        graph = met.graph
        for static, tensor in zip(graph.inputs, _tensors(step), strict=True):
            static.copy_(tensor)
        graph.replay()
        for layer, stored in zip(self._cache.layers, graph.stored, strict=True):
            if stored is not None:
                layer.note(stored._replace(packing=stored.packing.again(step.packing)))
        return graph.hidden

    def _meet(self, shape: _Shape) -> _Met:
        """One time more; the shape that was last seen the longest ago makes room for a new one."""
        met = self._shapes.setdefault(shape, _Met())
        met.times += 1
        self._shapes.move_to_end(shape)
        if len(self._shapes) > MOST_SHAPES:
            self._shapes.popitem(last=False)
        return met

    def _captured(self, step: Step, capture: Capture) -> _Graph:
        """A graph for steps of this shape; the cache is afterwards as it was before."""
        inputs = [tensor.clone() for tensor in _tensors(step)]
        before = self._cache.lengths.clone()
        try:
            with self._cache.unnoticed():
                replay, hidden = capture(lambda: run_layers(self._model, _on(inputs, step)))
                stored = [layer.latest for layer in self._cache.layers]
        finally:
            self._cache.lengths.copy_(before)
        return _Graph(inputs, replay, hidden, stored)


def _shape(step: Step) -> _Shape:
    frames = 0 if step.frames is None else len(step.frames.index)
    packing = step.packing
    return _Shape(step.hidden.shape[1], frames, packing.longest, packing.slot is not None)


def _tensors(step: Step) -> list[Tensor]:
    """All that a step's layers read beside weights and cache, in an order that `_on` knows."""
    packing, frames = step.packing, step.frames
    optional = (packing.positions, packing.marks)
    return [
        step.hidden,
        *step.rotary,
        packing.slots,
        packing.starts,
        *(tensor for tensor in optional if tensor is not None),
        *(() if frames is None else (frames.index, frames.others)),
    ]


def _on(inputs: list[Tensor], step: Step) -> Step:
    """The same step, reading these tensors, and the host's knowledge of it not used."""
    hidden, cos, sin, slots, starts, *rest = inputs
    packing, frames = step.packing, step.frames
    if frames is not None:
        *rest, index, others = rest
        frames = FramePlaces(index, others)
    positions, *rest = rest
    packing = Packing(
        packing.cache,
        slots,
        starts,
        packing.sizes,
        positions=positions,
        marks=rest[0] if rest else None,
        on_device=True,
    )
    return Step(hidden, (cos, sin), frames, packing)
