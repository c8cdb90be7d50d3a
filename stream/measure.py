"""How long a frame takes, beside the least that this machine could take: `videollm bench frame`.

In float32 as the model is loaded, and in int8 as `videollm.inference` prepares it.

The floor is the larger of two times: the arithmetic of a frame at the rate of the best large float32 matrix
product, and its weights' bytes at the bandwidth of a plain copy, both measured in the same run.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from stream.frames import Frame
from stream.session import Session
from videollm import VideoLLM
from videollm.depth import MixtureOfDepthsLayer
from videollm.inference import prepare_for_inference
from videollm.packed import Chunk, read
from videollm.quantized import Int8Linear

WARM_UP_FRAMES = 18  # of ten tokens and one between them: about 200 in the cache
FRAMES = 30
WORDS = 20
MATRIX = 1536
COPIED_BYTES = 256 << 20
REPEATS = 7
Way = tuple[str, str]  # its arithmetic, and which tokens run
PLAIN, PREPARED = "float32", "int8"


@dataclass(frozen=True)
class Machine:
    """What the floor is reckoned with."""

    gflops: float  # float32 matrix product
    copy_gbps: float  # bytes read; as many are written


@dataclass(frozen=True)
class Row:
    """One way of reading frames, median and spread (tenth and ninetieth percentile) of a silent step."""

    way: str
    frame_ms: float
    low_ms: float
    high_ms: float
    word_ms: float
    gflop: float
    weight_mib: float
    floor_ms: float

    @property
    def floor_ratio(self) -> float:
        return self.frame_ms / self.floor_ms


def machine() -> Machine:
    """Measure this machine's best matrix rate and its copy bandwidth."""
    a, b = torch.randn(2, MATRIX, MATRIX).unbind()
    product = min(_times(lambda: a @ b))
    source = torch.empty(COPIED_BYTES, dtype=torch.uint8).fill_(1)
    target = torch.empty_like(source)
    copied = min(_times(lambda: target.copy_(source)))
    return Machine(2 * MATRIX**3 / product / 1e9, COPIED_BYTES / copied / 1e9)


def measure(load: Callable[[], VideoLLM]) -> tuple[Machine, list[Row]]:
    """Every way in turn, frame by frame, so that what disturbs one disturbs all."""
    here = machine()
    sessions = dict(_ways(load))
    # Counted where PyTorch's counter sees it: not in int8, not in OpenVINO.
    gflop = {
        depth: _gflop(session.model)
        for (arithmetic, depth), session in sessions.items()
        if arithmetic == PLAIN
    }
    stream = _stream(WARM_UP_FRAMES + FRAMES)
    frames: dict[Way, list[float]] = {way: [] for way in sessions}
    for index, frame in enumerate(stream):
        for way, session in sessions.items():
            started = time.perf_counter()
            session.step(frame)
            if index >= WARM_UP_FRAMES:
                frames[way].append(time.perf_counter() - started)
    words: dict[Way, list[float]] = {way: [] for way in sessions}
    for _ in range(WORDS):
        for way, session in sessions.items():
            started = time.perf_counter()
            read(session.model, [Chunk(session.slot, [1])], session.engine.cache)
            words[way].append(time.perf_counter() - started)
    rows = []
    for way, session in sessions.items():
        low, median, high = (1e3 * time for time in spread(frames[way]))
        work, weights = gflop[way[1]], _weight_bytes(session.model)
        floor = max(work / here.gflops, weights / 1e9 / here.copy_gbps)
        rows.append(
            Row(
                ", ".join(way),
                median,
                low,
                high,
                1e3 * statistics.median(words[way]),
                work,
                weights / 2**20,
                1e3 * floor,
            )
        )
    return here, rows


def undo_depth(model: VideoLLM) -> VideoLLM:
    """The same weights with every token through every layer, in place."""
    for index, layer in enumerate(model.model.layers):
        if isinstance(layer, MixtureOfDepthsLayer):
            model.model.layers[index] = layer.block
    return model


def _ways(load: Callable[[], VideoLLM]) -> Iterator[tuple[Way, Session]]:
    yield (PLAIN, "full"), Session(undo_depth(load()), threshold=0.0)
    yield (PLAIN, "MoD"), Session(load(), threshold=0.0)
    yield (PREPARED, "full"), Session(prepare_for_inference(undo_depth(load())), threshold=0.0)
    yield (PREPARED, "MoD"), Session(prepare_for_inference(load()), threshold=0.0)


def _stream(count: int) -> list[Frame]:
    rng = np.random.default_rng(0)
    return [Frame(index / 2, rng.integers(0, 256, (360, 480, 3), dtype=np.uint8)) for index in range(count)]


def _gflop(model: VideoLLM) -> float:
    """Multiplications and additions of one silent step."""
    session = Session(model, threshold=0.0)
    first, second = _stream(2)
    session.step(first)
    with FlopCounterMode(display=False) as counter:
        session.step(second)
    return counter.get_total_flops() / 1e9


def _weight_bytes(model: VideoLLM) -> int:
    """Bytes that a step must fetch: all weights but the embeddings, of which it takes a few rows."""
    size = 0
    for module in model.modules():
        if isinstance(module, Int8Linear):
            size += module.in_features * module.out_features
        elif not isinstance(module, nn.Embedding):
            size += sum(parameter.nbytes for parameter in module.parameters(recurse=False))
    return size


def _times(work: Callable[[], object]) -> list[float]:
    work()
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return times


def spread(times: list[float]) -> tuple[float, float, float]:
    """Tenth percentile, median, ninetieth percentile."""
    ordered = sorted(times)
    return ordered[len(ordered) // 10], statistics.median(ordered), ordered[-1 - len(ordered) // 10]
