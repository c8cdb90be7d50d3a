"""How many live streams one model holds: `videollm bench streams`.

Frames of every stream come at their own times, two a second; every five seconds a stream says a reply of
twelve words. So many streams hold as keep the 95th percentile of the time from a frame's coming to its
decision, to speak or not, under half a second. Time is real: a trial takes as long as its streams last.
"""

from __future__ import annotations

import heapq
import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
from transformers import SiglipVisionConfig

from stream.engine import Engine, Read, Script
from stream.measure import undo_depth
from videollm import VideoLLM
from videollm.configuration import DepthConfig
from videollm.depth import MixtureOfDepthsLayer
from videollm.inference import prepare_for_inference
from videollm.shapes import DECODERS, random_model
from videollm.step_graphs import OFTEN

FPS = 2.0
REPLY_EVERY_FRAMES = 10
REPLY_TOKENS = 12
LIMIT_SECONDS = 0.5
PERCENTILE = 0.95
HOPELESS = 4  # times the limit: a trial ends early there
FINEST = 0.1  # of the number of streams: how near the most that hold is looked for
CHUNK_FRAMES = (1, 10)
SIGLIP_LARGE = SiglipVisionConfig(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    image_size=384,
    patch_size=16,
)


@dataclass(frozen=True)
class Row:
    """The most streams that held, and what they took; `together` says whether they shared steps."""

    way: str
    together: bool
    streams: int
    p95_ms: float
    median_ms: float


@dataclass(frozen=True)
class Rate:
    """One stream as fast as it goes, so many frames in a chunk, on a GPU through CUDA graphs or without."""

    way: str
    chunk_frames: int
    graphs: bool
    frames_per_second: float


def most_streams(way: str, model: VideoLLM, together: bool, history: int, seconds: float, most: int) -> Row:
    """Double the number of streams until it doesn't hold, then close in on the most that do, up to `most`.

    Each begins with `history` tokens read.
    """
    held, latencies, failed = 0, [math.inf], most + 1
    wanted = 1
    while wanted < failed:
        measured = trial(model, wanted, together, history, seconds)
        if _percentile(measured) < LIMIT_SECONDS:
            held, latencies = wanted, measured
        else:
            failed = wanted
        wanted = 2 * held if 2 * held < failed else (held + failed) // 2
        if wanted <= held or failed - held <= FINEST * held:
            break
    return Row(way, together, held, 1e3 * _percentile(latencies), 1e3 * statistics.median(latencies))


def trial(model: VideoLLM, streams: int, together: bool, history: int, seconds: float) -> list[float]:
    """Latencies [s] of all frames that come in `seconds`; those behind hopeless ones count as infinite."""
    engines = (
        [_engine(model, streams, history)]
        if together
        else [_engine(model, 1, history) for _ in range(streams)]
    )
    places = [(engine, engine.join()) for engine in engines for _ in range(engine.cache.slots)]
    frames = math.ceil(seconds * FPS)
    due = [((index / streams) / FPS, index, 0) for index in range(streams)]
    heapq.heapify(due)
    latencies: list[float] = []
    frame = _frames(model, 1)
    started = time.perf_counter()

    def watch(coming: float, number: int) -> Script:
        yield frame
        latencies.append(time.perf_counter() - started - coming)
        if (number + 1) % REPLY_EVERY_FRAMES == 0:
            for _ in range(REPLY_TOKENS):
                yield Read([1])
        return []

    while len(latencies) < frames * streams:
        now = time.perf_counter() - started
        while due and due[0][0] <= now:
            coming, index, number = heapq.heappop(due)
            engine, slot = places[index]
            engine.submit(slot, watch(coming, number))
            if number + 1 < frames:
                heapq.heappush(due, (coming + 1 / FPS, index, number + 1))
        busy = [engine for engine in engines if engine.busy]
        for engine in busy:
            engine.step()
        if not busy:
            time.sleep(max(0.0, due[0][0] - (time.perf_counter() - started)))
        if latencies and latencies[-1] > HOPELESS * LIMIT_SECONDS:
            return latencies + [math.inf] * (frames * streams - len(latencies))
    return latencies


def rates(way: str, model: VideoLLM, history: int, seconds: float) -> list[Rate]:
    """One stream without a clock, in chunks of one and of several frames."""
    found = []
    for count, graphs in product(CHUNK_FRAMES, (True, False) if model.device.type == "cuda" else (False,)):
        chunk = _frames(model, count)

        engine = _engine(model, 1, history)
        if not graphs:
            engine.graphs = None
        slot = engine.join()
        read, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            if len(chunk.ids) > engine.cache.room(slot):
                _fill(engine, history)
            engine.run(slot, _reading(chunk))
            read += count
        found.append(Rate(way, count, graphs, read / (time.perf_counter() - started)))
    return found


def ways(name: str, device: torch.device, history: int, seconds: float) -> Iterator[tuple[str, VideoLLM]]:
    """Full computation and mixture-of-depths: a checkpoint, prepared for inference, or a shape of random
    weights with SigLIP-L/16 at 384 pixels before it, one after the other in memory."""
    for way in ("full", "MoD"):
        if name in DECODERS:
            depth = DepthConfig(router="full" if way == "full" else "top_k")
            room = math.ceil(seconds * FPS) * (REPLY_TOKENS + 16)
            yield (
                way,
                random_model(
                    name,
                    SIGLIP_LARGE,
                    depth,
                    device,
                    torch.bfloat16,
                    context_tokens=history + room,
                ),
            )
        else:
            model = VideoLLM.from_pretrained(name)
            model.to(device=device)  # type: ignore[call-arg]  # wrapped by transformers without its own type
            yield way, prepare_for_inference(undo_depth(model) if way == "full" else model)


def _frames(model: VideoLLM, count: int) -> Read:
    """So many random frames, each behind an interval token."""
    config, size = model.config, model.vision_tower.size
    ids = [1, *[config.frame_token_id] * config.tokens_per_frame] * count
    return Read(ids, torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8))


def _engine(model: VideoLLM, slots: int, history: int) -> Engine:
    engine = Engine(model, slots)
    if engine.graphs is not None:  # one stream's are captured before any clock runs
        slot = engine.join()
        for read in [_frames(model, 1), Read([1])] * (OFTEN + 1):
            engine.run(slot, _reading(read))
        engine.leave(slot)
    _fill(engine, history)
    return engine


def _reading(read: Read) -> Script:
    yield read
    return []


def _fill(engine: Engine, history: int) -> None:
    """As if each stream had read `history` tokens of frames: a routed layer holds fewer of them."""
    config = engine.model.config
    cache, tokens = engine.cache, config.tokens_per_frame
    for index, layer in enumerate(engine.model.model.layers):
        share = 1.0
        if isinstance(layer, MixtureOfDepthsLayer):
            share = (1 + math.ceil(config.depth_config.ratio * tokens)) / (1 + tokens)
        held = round(history * share)
        cache.lengths[index] = held
        cache.layers[index].keys[:, :, :held] = 0
        cache.layers[index].values[:, :, :held] = 0
    cache.recount()
    cache.seen = [history] * cache.slots


def _percentile(latencies: list[float]) -> float:
    return sorted(latencies)[math.ceil(PERCENTILE * len(latencies)) - 1]
