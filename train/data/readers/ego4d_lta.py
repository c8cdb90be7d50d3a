"""Ego4D's long-term action anticipation, `fho_lta_train.json` and `fho_lta_val.json`.

Format: https://ego4d-data.org/docs/data/annotations-schemas/ ("Long-Term Action Anticipation").
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import msgspec

from train.data.annotations import AnnotatedVideo, Segment, Skipped
from train.data.readers.decoding import decode_file
from train.data.segments import sound


class Action(msgspec.Struct):
    clip_uid: str
    action_clip_start_sec: float
    action_clip_end_sec: float
    clip_parent_start_sec: float | None = None
    clip_parent_end_sec: float | None = None
    verb: str = ""  # the test set's are kept back
    noun: str = ""


class File(msgspec.Struct):
    clips: list[Action]
    split: str = ""


def read(path: Path, skipped: Skipped) -> list[AnnotatedVideo]:
    """The benchmark's clips (`clips/<clip_uid>.mp4` of the release), times counted from the clip's beginning.

    The text is verb and noun without the taxonomy's synonyms: "turn_on_(switch_on,_start,_light)" and "stove"
    are "turn on stove".
    """
    file = decode_file(path, File, "Ego4D's fho_lta_*.json")
    clips: dict[str, list[Action]] = defaultdict(list)
    for action in file.clips:
        clips[action.clip_uid].append(action)
    videos = []
    for clip, actions in clips.items():
        duration = _duration(actions[0])
        segments = sound(map(_segment, actions), clip, duration, skipped)
        if segments:
            videos.append(AnnotatedVideo(clip, segments, duration, file.split))
        else:
            skipped.add("video without actions", clip)
    return videos


def _segment(action: Action) -> Segment:
    text = f"{label(action.verb)} {label(action.noun)}".strip()
    return Segment(action.action_clip_start_sec, text, action.action_clip_end_sec)


def _duration(action: Action) -> float | None:
    if action.clip_parent_start_sec is None or action.clip_parent_end_sec is None:
        return None
    return action.clip_parent_end_sec - action.clip_parent_start_sec


def label(name: str) -> str:
    """A name of the taxonomy as words, without the synonyms in its brackets."""
    return re.sub(r"\(.*?\)", "", name).replace("_", " ").strip()
