"""Ego4D Goal-Step, `goalstep_train.json` and `goalstep_val.json` of Ego4D v2.1.

Format: https://github.com/facebookresearch/ego4d-goalstep ("Annotation Format").
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from train.data.annotations import AnnotatedVideo, Segment, Skipped
from train.data.readers.decoding import decode_file, once_each
from train.data.segments import sound


class Step(msgspec.Struct):
    start_time: float
    end_time: float
    step_description: str
    segments: list[Step] = []


class Video(msgspec.Struct):
    video_uid: str
    goal_description: str = ""  # the test set's are kept back
    segments: list[Step] = []


class File(msgspec.Struct):
    videos: list[Video]
    split: str = ""


def read(path: Path, skipped: Skipped) -> list[AnnotatedVideo]:
    """A video's finest segments: a step's substeps where it has some, the step itself where not. The goal is
    its `task`."""
    file = decode_file(path, File, "Ego4D's goalstep_*.json")
    once_each([video.video_uid for video in file.videos], path)
    videos = []
    for video in file.videos:
        segments = sound(_finest(video.segments), video.video_uid, None, skipped)
        if segments:
            task = video.goal_description.strip()
            videos.append(AnnotatedVideo(video.video_uid, segments, split=file.split, task=task))
        else:
            skipped.add("video without steps", video.video_uid)
    return videos


def _finest(steps: list[Step]) -> Iterator[Segment]:
    for step in steps:
        if step.segments:
            yield from _finest(step.segments)
        else:
            yield Segment(step.start_time, step.step_description, step.end_time)
