"""COIN, `COIN.json`.

Format: https://github.com/coin-dataset/annotations ("Dataset and Annotation").
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import msgspec

from train.data.annotations import AnnotatedVideo, Segment, Skipped
from train.data.readers.decoding import Name, decode_file
from train.data.segments import sound

_WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


class Step(msgspec.Struct):
    segment: Annotated[list[float], msgspec.Meta(min_length=2, max_length=2)]  # start and end in seconds
    label: str


class Video(msgspec.Struct):
    duration: float
    subset: str
    annotation: list[Step]
    task: str = msgspec.field(name="class")


class File(msgspec.Struct):
    database: dict[Name, Video]


def read(path: Path, skipped: Skipped) -> list[AnnotatedVideo]:
    """The videos by their YouTube ids, with their steps; the class in words is the task, the subset the split
    ("training" or "testing")."""
    videos = []
    for name, video in decode_file(path, File, "COIN's COIN.json").database.items():
        steps = (Segment(step.segment[0], step.label, step.segment[1]) for step in video.annotation)
        segments = sound(steps, name, video.duration, skipped)
        if segments:
            task = task_in_words(video.task)
            videos.append(AnnotatedVideo(str(name), segments, video.duration, video.subset, task))
        else:
            skipped.add("video without steps", name)
    return videos


def task_in_words(name: str) -> str:
    """A class's name as words: "ReplaceCDDriveWithSSD" is "replace CD drive with SSD"."""
    words = _WORDS.sub(" ", name).split()
    return " ".join(word if word.isupper() and len(word) > 1 else word.lower() for word in words)
