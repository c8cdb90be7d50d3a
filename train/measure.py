"""What a training step costs, with all tokens in every layer and with fewer: `videollm bench train`.

A dialogue of a stream as VideoLLM-online trains on it: frames with an interval token behind each, now and
then a reply; loss on frame ends and replies, low-rank adapters on every linear layer, weights random, vision
features given. VideoLLM-MoD (NeurIPS 2024) reports 42 % of the time and 30 % of the memory saved.
"""

from __future__ import annotations

import gc
import statistics
import time
import weakref
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import SiglipVisionConfig

from videollm import VideoLLM
from videollm.configuration import DepthConfig
from videollm.shapes import random_model

SYSTEM_TOKENS = 32
REPLY_TOKENS = 12
FRAMES_A_REPLY = 10
WARM_UP_STEPS = 1


@dataclass(frozen=True)
class Shape:
    """A decoder of `videollm.shapes` and how it is trained."""

    decoder: str
    vision_size: int
    rank: int
    dtype: torch.dtype
    loads: tuple[tuple[int, int], ...]  # frames of a sequence, and rows of spatial tokens: 1 + grid^2 a frame
    steps: int


SHAPES = {
    shape.decoder: shape
    for shape in (
        Shape("llama-3-8b", 1024, 128, torch.bfloat16, loads=((600, 3), (120, 7)), steps=5),
        Shape("smollm2-135m", 1280, 16, torch.float32, loads=((60, 3), (12, 7)), steps=3),
        Shape("tiny", 32, 4, torch.float32, loads=((20, 3),), steps=1),
    )
}
WAYS = {
    "full": DepthConfig(router="full"),
    "MoD, every second layer": DepthConfig(router="top_k", layers="interleaved", ratio=0.2),
    "MoD, all layers": DepthConfig(router="top_k", layers="all", ratio=0.2),
    "p-MoD": DepthConfig(router="p_mod"),
}


@dataclass(frozen=True)
class Row:
    """One way of training on one load. The peak is of all that lies on a CUDA device; elsewhere of
    what a step makes beside the weights."""

    load: str
    way: str
    checkpointing: bool
    step_ms: float
    low_ms: float
    high_ms: float
    peak_mib: float
    time_of_full: float
    memory_of_full: float


def measure(device: torch.device | str, shape: Shape) -> Iterator[Row]:
    """Every load, with gradient checkpointing and without, in every way; `full` comes first and is the
    baseline of its group."""
    device = torch.device(device)
    for frames, grid in shape.loads:
        for checkpointing in (False, True):
            baseline: tuple[float, float] | None = None
            for way, depth in WAYS.items():
                times, peak = _steps(device, shape, depth, frames, grid, checkpointing)
                median = statistics.median(times)
                baseline = baseline or (median, peak)
                yield Row(
                    f"{frames} x {1 + grid**2}",
                    way,
                    checkpointing,
                    median,
                    min(times),
                    max(times),
                    peak,
                    median / baseline[0],
                    peak / baseline[1],
                )


def _steps(
    device: torch.device, shape: Shape, depth: DepthConfig, frames: int, grid: int, checkpointing: bool
) -> tuple[list[float], float]:
    """Times of the steps [ms] and the peak [MiB]."""
    torch.manual_seed(0)
    model = _model(device, shape, depth, grid)
    ids, labels = _dialogue(model, frames)
    features = torch.randn(frames, 1 + grid**2, shape.vision_size, device=device, dtype=shape.dtype)
    config = LoraConfig(
        r=shape.rank,
        lora_alpha=2 * shape.rank,
        target_modules=r"model\.layers.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)$",
        modules_to_save=["connector", "router"] if depth.router != "full" else ["connector"],
    )
    adapted = get_peft_model(model, config).train()
    if checkpointing:
        adapted.gradient_checkpointing_enable({"use_reentrant": False})
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, foreach=device.type == "cuda")
    times = []
    counted = Peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for step in range(WARM_UP_STEPS + shape.steps):
        _wait(device)
        started = time.perf_counter()
        with counted if step == 0 and device.type != "cuda" else nullcontext():
            loss = adapted(input_ids=ids, frame_embeds=model.connector(features), labels=labels).loss
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        _wait(device)
        if step >= WARM_UP_STEPS:
            times.append(1e3 * (time.perf_counter() - started))
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else counted.peak
    del adapted, model, optimizer, trained, loss
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return times, peak / 2**20


def _model(device: torch.device, shape: Shape, depth: DepthConfig, grid: int) -> VideoLLM:
    # One layer of vision that is never run: features are given.
    vision = SiglipVisionConfig(
        hidden_size=shape.vision_size, intermediate_size=64, num_hidden_layers=1, num_attention_heads=8
    )
    return random_model(shape.decoder, vision, depth, device, shape.dtype, frame_grid=grid)


def _dialogue(model: VideoLLM, frames: int) -> tuple[Tensor, Tensor]:
    """Token ids [1, sequence], and labels alike: replies and the intervals behind frames are learned."""
    frame = [model.config.frame_token_id] * model.config.tokens_per_frame
    ids, learned = [1] * SYSTEM_TOKENS, [False] * SYSTEM_TOKENS
    for index in range(frames):
        said = REPLY_TOKENS if (index + 1) % FRAMES_A_REPLY == 0 else 1
        ids += [*frame, *[2] * said]
        learned += [*[False] * len(frame), *[True] * said]
    tokens = torch.tensor([ids], device=model.device)
    return tokens, tokens.masked_fill(~torch.tensor([learned], device=model.device), -100)


class Peak(TorchDispatchMode):
    """Counts the bytes that operations allocate and that are still alive, and the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self._known: WeakSet[torch.UntypedStorage] = WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {
            id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)
        }
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._meet(leaf.untyped_storage(), before)
        return out

    def _meet(self, storage: torch.UntypedStorage, before: set[int]) -> None:
        if id(storage) in before or storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.alive -= size


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
