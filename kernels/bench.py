"""How fast the operations are, beside what they replace and beside the bandwidth of the same run.

The three that move rows are bound by memory: their floor is the time that a plain copy of as many bytes takes
on the same device, measured here too. Attention stands beside the padded batch with a mask that it replaces,
and beside the ragged attention of `torch.nn.attention.varlen`, for which the caches are packed beforehand.
"""

from __future__ import annotations

import inspect
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels import attend, gather_norm, route, scatter_add
from kernels.dispatch import runs_triton

EPS = 1e-5
SCRATCH_BYTES = 256 << 20  # written between two timings on a GPU, so that no input is left in its cache


@dataclass(frozen=True)
class Attention:
    """One attention shape: every session's new queries and tokens in cache."""

    name: str
    queries: tuple[int, ...]
    lengths: tuple[int, ...]


@dataclass(frozen=True)
class Sizes:
    """What `measure` takes the operations through."""

    frames: int
    tokens: tuple[int, ...]  # of a frame, one after the other
    dim: int
    ratio: float  # share of a frame's tokens that is kept
    heads: int
    kv_heads: int
    head_dim: int
    attention: tuple[Attention, ...]
    dtype: torch.dtype
    repeats: int
    compiled: bool  # time the references under torch.compile too


RAGGED = (4096, 3001, 2048, 777, 4095, 513, 1500, 64)
GPU = Sizes(
    frames=512,
    tokens=(50, 10),
    dim=4096,
    ratio=0.2,
    heads=32,
    kv_heads=8,
    head_dim=128,
    attention=(
        Attention("decode, one session", (1,), (4096,)),
        Attention("decode, ragged", (1,) * 8, RAGGED),
        Attention("decode, 64 sessions", (1,) * 64, RAGGED * 8),
        Attention("frame of 2, ragged", (2,) * 8, RAGGED),
        Attention("frame of 10, ragged", (10,) * 8, RAGGED),
        Attention("frame of 50, ragged", (50,) * 8, RAGGED),
        Attention("frames and silence, ragged", (50, 0, 10, 1, 2, 0, 10, 1), RAGGED),
        Attention("prefill, ragged", RAGGED[:4], RAGGED[:4]),
    ),
    dtype=torch.bfloat16,
    repeats=50,
    compiled=True,
)
SMALL = Sizes(
    frames=8,
    tokens=(10,),
    dim=64,
    ratio=0.2,
    heads=4,
    kv_heads=2,
    head_dim=16,
    attention=(
        Attention("decode, ragged", (1, 1, 1), (64, 1, 33)),
        Attention("frames and silence, ragged", (10, 0, 2), (64, 20, 33)),
    ),
    dtype=torch.float32,
    repeats=3,
    compiled=False,
)


@dataclass(frozen=True)
class Row:
    """One timing. `floor_ms` is a copy of as many bytes; attention has none, more than memory binds it."""

    operation: str
    size: str
    way: str  # "kernel", "reference", "compiled reference", "padded sdpa", "varlen" or "copy"
    median_ms: float
    low_ms: float  # the tenth and the ninetieth percentile
    high_ms: float
    moved_bytes: int
    floor_ms: float | None


def measure(device: torch.device | str, sizes: Sizes | None = None) -> list[Row]:
    """Time every operation on `device`, forward and (where it trains) forward and backward.

    Without `sizes` a GPU takes `GPU` and anything else `SMALL`. The rows of way "kernel" are there only where
    the operations pick their kernels.
    """
    device = torch.device(device)
    sizes = sizes or (GPU if device.type == "cuda" else SMALL)
    bench = _Bench(device, sizes)
    with torch.no_grad():
        bench.copy()
    for tokens in sizes.tokens:
        bench.route(tokens)
        bench.gather_norm(tokens)
        bench.scatter_add(tokens)
    with torch.no_grad():
        for shape in sizes.attention:
            bench.attend(shape)
    return bench.rows


class _Bench:
    def __init__(self, device: torch.device, sizes: Sizes) -> None:
        self.device, self.sizes = device, sizes
        self.rows: list[Row] = []
        self.bytes_per_ms = math.inf
        scratch = SCRATCH_BYTES if device.type == "cuda" else 0
        self.scratch = torch.empty(scratch, dtype=torch.uint8, device=device)
        self.kernels = runs_triton(self.scratch)

    def copy(self) -> None:
        source = self.random(self.sizes.frames * max(self.sizes.tokens), self.sizes.dim)
        target = torch.empty_like(source)
        moved = 2 * source.nbytes
        self.time("copy", _shape(source), "copy", lambda: target.copy_(source), moved)
        self.bytes_per_ms = moved / self.rows[-1].median_ms

    def route(self, tokens: int) -> None:
        hidden = self.random(self.sizes.frames, tokens, self.sizes.dim).requires_grad_()
        weight = self.random(self.sizes.dim).requires_grad_()
        k = self.kept(tokens)
        bias = torch.zeros((), device=self.device)
        top_k = self.ways(
            lambda: route.route_top_k(hidden, weight, k, True),
            route._reference_top_k,
            lambda reference: reference(hidden, weight, k, True),
        )
        threshold = self.ways(
            lambda: route.route_threshold(hidden, weight, bias, 0.5, True),
            route._reference_threshold,
            lambda reference: reference(hidden, weight, route._cutoff(bias, 0.5), True),
        )
        for name, ways in (("route_top_k", top_k), ("route_threshold", threshold)):
            moved = hidden.nbytes, 3 * hidden.nbytes  # backward, hidden is read and its gradient written
            self.both(name, _shape(hidden), ways, [hidden, weight], lambda out: out.scores, moved)

    def gather_norm(self, tokens: int) -> None:
        x, index = self.stream(tokens)
        weight = self.random(self.sizes.dim).requires_grad_()
        ways = self.ways(
            lambda: gather_norm.gather_rms_norm(x, index, weight, EPS),
            gather_norm._reference,
            lambda reference: reference(x, index, weight, EPS),
        )
        kept = len(index) * x.shape[1] * x.element_size()
        # Backward: kept rows of x and of the gradient read, the gradient to x zeroed, its kept rows written.
        moved = 2 * kept, 5 * kept + x.nbytes
        self.both(
            "gather_rms_norm", f"{len(index)} of {_shape(x)}", ways, [x, weight], lambda out: out, moved
        )

    def scatter_add(self, tokens: int) -> None:
        x, index = self.stream(tokens)
        update = self.random(len(index), self.sizes.dim).requires_grad_()
        gate = self.random(len(index)).float().requires_grad_()
        ways = self.ways(
            lambda: scatter_add.scatter_add(x, index, update, gate),
            scatter_add._reference,
            lambda reference: reference(x, index, update, gate),
        )
        # With gradients x is copied first; the backward pass reads two kept rows and writes one.
        moved = 3 * update.nbytes, 6 * update.nbytes + 2 * x.nbytes
        size = f"{len(index)} of {_shape(x)}"
        self.both("scatter_add", size, ways, [x, update, gate], lambda out: out, moved)

    def attend(self, shape: Attention) -> None:
        s = self.sizes
        sessions, capacity, longest = len(shape.lengths), max(shape.lengths), max(shape.queries)
        scale = s.head_dim**-0.5
        query = self.random(sum(shape.queries), s.heads, s.head_dim)
        keys = self.random(sessions, s.kv_heads, capacity, s.head_dim)
        values = self.random(sessions, s.kv_heads, capacity, s.head_dim)
        lengths = torch.tensor(shape.lengths, dtype=torch.int32, device=self.device)
        starts = self.bounds(shape.queries)
        ways = self.ways(
            lambda: attend.attend(query, keys, values, lengths, starts, longest, scale),
            attend._reference,
            lambda reference: reference(query, keys, values, lengths, starts, scale),
        )
        ways["padded sdpa"] = self.padded(query, keys, values, lengths, starts, longest, scale)
        packed = self.packed(query, keys, values, shape, scale)
        if packed is not None:
            ways["varlen"] = packed
        moved = 2 * query.nbytes + 2 * sum(shape.lengths) * s.kv_heads * s.head_dim * query.element_size()
        for way, run in ways.items():
            self.time("attend", shape.name, way, run, moved)

    def padded(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        lengths: Tensor,
        starts: Tensor,
        longest: int,
        scale: float,
    ) -> Callable[[], object]:
        """The batch as one does it without ragged attention: queries at the right end, the rest masked."""
        sessions, capacity = keys.shape[0], keys.shape[2]
        counts = (starts[1:] - starts[:-1])[:, None]  # [sessions, 1]
        slot = torch.arange(longest, device=self.device) - (longest - counts)  # [sessions, longest]
        batch = query[(starts[:-1, None] + slot.clamp(min=0)).clamp(max=len(query) - 1)]
        batch = batch.transpose(1, 2).contiguous()  # [sessions, heads, longest, head_dim]
        visible = (lengths[:, None] - counts + slot + 1).clamp(
            min=1
        )  # a padded row sees a key, lest it be NaN
        mask = torch.arange(capacity, device=self.device) < visible[..., None]
        mask = mask.view(sessions, 1, longest, capacity)
        return lambda: F.scaled_dot_product_attention(
            batch, keys, values, attn_mask=mask, scale=scale, enable_gqa=True
        )

    def packed(
        self, query: Tensor, keys: Tensor, values: Tensor, shape: Attention, scale: float
    ) -> Callable[[], object] | None:
        """The ragged attention of PyTorch, where this version has it and this device runs it."""
        try:
            from torch.nn.attention.varlen import varlen_attn
        except ImportError:
            return None
        if not self.kernels or not {"window_size", "enable_gqa"} <= set(
            inspect.signature(varlen_attn).parameters
        ):
            return None
        flat_keys, flat_values = (
            torch.cat([slab[i, :, :length].transpose(0, 1) for i, length in enumerate(shape.lengths)])
            for slab in (keys, values)
        )  # [all lengths, kv_heads, head_dim]
        bounds = self.bounds(shape.queries), self.bounds(shape.lengths)
        longest = max(shape.queries), max(shape.lengths)
        causal: dict[str, Any] = {"scale": scale, "window_size": (-1, 0), "enable_gqa": True}
        return lambda: varlen_attn(query, flat_keys, flat_values, *bounds, *longest, **causal)

    def both(
        self,
        operation: str,
        size: str,
        ways: dict[str, Callable[[], Any]],
        inputs: list[Tensor],
        result: Callable[[Any], Tensor],
        moved: tuple[int, int],
    ) -> None:
        """Forward alone, then forward and backward, with the bytes that each moves."""

        def training(run: Callable[[], Any]) -> Callable[[], object]:
            gradient = torch.ones_like(result(run()))
            return lambda: torch.autograd.grad(result(run()), inputs, gradient)

        with torch.no_grad():
            for way, run in ways.items():
                self.time(operation, size, way, run, moved[0])
        for way, run in ways.items():
            self.time(f"{operation} and backward", size, way, training(run), moved[1])

    def ways(
        self,
        kernel: Callable[[], Any],
        reference: Callable[..., Any],
        call: Callable[[Callable[..., Any]], Any],
    ) -> dict[str, Callable[[], Any]]:
        """What to time: the picked kernel, the reference as it is and compiled."""
        ways: dict[str, Callable[[], Any]] = {"kernel": kernel} if self.kernels else {}
        ways["reference"] = lambda: call(reference)
        if self.sizes.compiled:
            torch.compiler.reset()  # each size is compiled for itself, none counts as a recompilation
            compiled = torch.compile(reference, dynamic=False)
            ways["compiled reference"] = lambda: call(compiled)
        return ways

    def time(self, operation: str, size: str, way: str, run: Callable[[], object], moved: int) -> None:
        for _ in range(3):  # compilation, allocation
            run()
        times = sorted(self.once(run) for _ in range(self.sizes.repeats))
        tenth = len(times) // 10
        floor = None if operation in ("copy", "attend") else moved / self.bytes_per_ms
        self.rows.append(
            Row(operation, size, way, statistics.median(times), times[tenth], times[-1 - tenth], moved, floor)
        )

    def once(self, run: Callable[[], object]) -> float:
        """Milliseconds of one run, on a GPU by its own clock and with a cold cache."""
        if self.device.type != "cuda":
            begun = time.perf_counter()
            run()
            return 1e3 * (time.perf_counter() - begun)
        self.scratch.zero_()
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        run()
        last.record()
        last.synchronize()
        return first.elapsed_time(last)

    def stream(self, tokens: int) -> tuple[Tensor, Tensor]:
        """Hidden states of all frames, flat, and which rows are kept: the first few of every frame."""
        s = self.sizes
        x = self.random(s.frames * tokens, s.dim).requires_grad_()
        frame = torch.arange(s.frames, device=self.device)[:, None] * tokens
        return x, (frame + torch.arange(self.kept(tokens), device=self.device)).flatten()

    def kept(self, tokens: int) -> int:
        return math.ceil(self.sizes.ratio * tokens)

    def random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, device=self.device).to(self.sizes.dtype)

    def bounds(self, counts: tuple[int, ...]) -> Tensor:
        return F.pad(torch.tensor(counts).cumsum(0), (1, 0)).to(self.device, torch.int32)


def _shape(tensor: Tensor) -> str:
    return " x ".join(str(extent) for extent in tensor.shape)
