"""Videos through the vision tower: what a session would see of them, as features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from av.error import FFmpegError

from stream.feed import Feed
from stream.frames import Frame
from stream.sources import SourceError, open_source
from stream.sources.square import pad_to_square
from train.data.shards import FileFacts, Shard, VideoFeatures, write_shard
from videollm.checkpoints import load_vision_tower
from videollm.inference import prepare_tower
from videollm.vision import VisionTower

BATCH = 16  # frames; with more the tower is no faster


@dataclass(frozen=True)
class Job:
    """A shard to be made: where it goes, and the files of the videos in it, by name."""

    path: Path
    videos: dict[str, Path]


@dataclass(frozen=True)
class Made:
    """What became of a job: its shard, unless no video could be read, and why for those that could not."""

    shard: Shard | None
    failed: dict[str, str]


class ShardMaker:
    """Encodes a job's videos and writes their shard, with a model's vision tower.

    On the CPU the tower runs as in inference, through OpenVINO where it is installed: in float32, and what it
    gives rounds to the same half-precision numbers. `told` hears of every so many frames that are encoded.
    """

    def __init__(
        self,
        model: str,
        device: torch.device,
        fps: float,
        max_side: int | None,
        told: Callable[[int], object] | None = None,
    ) -> None:
        tower, self.vision = load_vision_tower(model)
        self.tower = prepare_tower(tower.to(device))
        self._fps = fps
        self._max_side = max_side
        self._told = told or (lambda frames: None)

    def __call__(self, job: Job) -> Made:
        videos, failed = {}, {}
        for name, path in job.videos.items():
            try:
                videos[name] = encode_video(path, self.tower, self._fps, self._max_side, self._told)
            except (SourceError, FFmpegError, OSError) as error:
                failed[name] = str(error)
        return Made(write_shard(job.path, videos) if videos else None, failed)


def encode_video(
    path: Path,
    tower: VisionTower,
    fps: float,
    max_side: int | None,
    told: Callable[[int], object],
) -> VideoFeatures:
    """Sample a video and encode its frames. SourceError for one that can't be read to its end."""
    facts = FileFacts.of(path)
    times: list[float] = []
    parts: list[np.ndarray] = []
    waiting: list[np.ndarray] = []

    def flush() -> None:
        parts.append(encode(tower, np.stack(waiting)))
        told(len(waiting))
        waiting.clear()

    with open_source(str(path), fps, max_side=max_side) as source, Feed(source) as feed:
        for frame in feed:
            if not isinstance(frame, Frame):
                continue  # a notice; what it tells is the source's problem
            times.append(frame.time)
            waiting.append(pad_to_square(frame.pixels, tower.size))
            if len(waiting) == BATCH:
                flush()
        if waiting:
            flush()
    if source.problem is not None:
        raise SourceError(f"{source.name}: {source.problem}")
    duration = source.duration or times[-1] + 1 / fps
    return VideoFeatures(np.concatenate(parts), np.array(times), duration, facts)


def bytes_of_frame(tower: VisionTower) -> int:
    """How much of a shard one frame takes."""
    half = torch.finfo(torch.float16).bits // 8
    return (tower.cls + tower.grid**2) * tower.backbone.config.hidden_size * half


@torch.inference_mode()
def encode(tower: VisionTower, frames: np.ndarray) -> np.ndarray:
    """Frames, uint8 [frames, size, size, 3], to features, float16 [frames, tokens, dim]."""
    batches = torch.from_numpy(frames).permute(0, 3, 1, 2).split(BATCH)
    return torch.cat([tower(batch).half().cpu() for batch in batches]).numpy()
