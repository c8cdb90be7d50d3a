"""Annotation of one's own: JSON lines, one video a line.

    {"video": "kitchen", "segments": [{"start": 2.5, "end": 4, "text": "opens the fridge"}], "duration": 60}

`video` is the file's stem; times are seconds from its beginning. `end`, `duration`, `split` and `task` may be
left out.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from train.data.annotations import AnnotatedVideo, Segment, Skipped
from train.data.readers.decoding import decode_lines
from train.data.segments import sound


class Part(msgspec.Struct, forbid_unknown_fields=True):
    start: float
    text: str
    end: float | None = None


class Video(msgspec.Struct, forbid_unknown_fields=True):
    video: str
    segments: list[Part]
    duration: float | None = None
    split: str = ""
    task: str = ""


def read(path: Path, skipped: Skipped) -> list[AnnotatedVideo]:
    """The videos in the file's order."""
    videos = []
    line_of: dict[str, int] = {}
    for number, video in decode_lines(path, Video):
        if first := line_of.get(video.video):
            raise ValueError(f"{path}, line {number}: the video {video.video!r} is in line {first} already")
        line_of[video.video] = number
        parts = (Segment(part.start, part.text, part.end) for part in video.segments)
        segments = sound(parts, video.video, video.duration, skipped)
        if segments:
            videos.append(AnnotatedVideo(video.video, segments, video.duration, video.split, video.task))
        else:
            skipped.add("video without segments", f"{path}, line {number}")
    return videos
