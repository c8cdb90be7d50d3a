"""Ego4D's narrations, `narration.json`.

Format: https://ego4d-data.org/docs/data/annotations-schemas/ ("Narrations"); the tags in the texts:
https://ego4d-data.org/docs/data/annotation-guidelines/.
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from train.data.annotations import AnnotatedVideo, Segment, Skipped
from train.data.readers.decoding import Name, decode_file
from train.data.segments import sound

# "#C C picks a cup": the camera wearer acts; "#O": somebody else; "#unsure": something has no sure name. The
# other tags of the file are misspellings of these.
_TAG = re.compile(r"#\s*(?:c|o|unsure)\b|@c\b|#", re.IGNORECASE)


class Narration(msgspec.Struct):
    timestamp_sec: float
    narration_text: str | None = None


class Pass(msgspec.Struct):
    narrations: list[Narration] = []


class Video(msgspec.Struct):
    narration_pass_1: Pass | None = None
    narration_pass_2: Pass | None = None


def read(path: Path, skipped: Skipped) -> list[AnnotatedVideo]:
    """One entry for each annotator of a video, so a video that two have narrated comes twice.

    As in VideoLLM-online's narration streams, so that scores compare, the tags are taken out, sentences
    marked `#unsure` are kept, and those of less than two words left out. A narration is a moment: no end.
    """
    videos: list[AnnotatedVideo] = []
    for name, video in decode_file(path, dict[Name, Video], "Ego4D's narration.json").items():
        before = len(videos)
        for narrated in (video.narration_pass_1, video.narration_pass_2):
            segments = sound(_said(narrated, name, skipped), name, None, skipped) if narrated else ()
            if segments:
                videos.append(AnnotatedVideo(str(name), segments))
        if len(videos) == before:
            skipped.add("video without narrations", name)
    return videos


def _said(narrated: Pass, video: str, skipped: Skipped) -> list[Segment]:
    said = []
    for narration in narrated.narrations:
        text = _TAG.sub("", narration.narration_text or "").strip(" .,\n")
        if text and len(text.split()) < 2:  # a "C" alone does nothing
            skipped.add("narration of one word", f"{video} at {narration.timestamp_sec:g} s")
        else:
            said.append(Segment(narration.timestamp_sec, text))
    return said
