"""Clips with their annotation, and what `prepare` made of them."""

from __future__ import annotations

from pathlib import Path

import av
import msgspec
import numpy as np

from train.data.annotations import AnnotatedVideo, Segment
from train.data.shards import Shards


def make_moving_clip(path: Path, seed: int, seconds: float = 2) -> Path:
    """A clip of its own content: noise that a wipe uncovers."""
    picture = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=10, options={"preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        frames = round(seconds * 10)
        for number in range(frames):
            pixels = picture.copy()
            pixels[:, 64 * number // frames :] = 0
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(video.encode())
    return path


def write_annotation(path: Path, *videos: str) -> Path:
    """Annotation of one's own, with something at 0.5 s in each of the videos."""
    annotated = [AnnotatedVideo(video, (Segment(0.5, "It stirs."),)) for video in videos]
    path.write_bytes(msgspec.json.Encoder().encode_lines(annotated))
    return path


def contents(folder: Path) -> dict[str, tuple[float, bytes, bytes]]:
    """All that a prepared folder holds of each video: duration, times, features."""
    shards = Shards(folder)
    return {
        video: (shards.duration(video), shards.times(video).tobytes(), shards.features(video).tobytes())
        for video in shards.videos
    }
