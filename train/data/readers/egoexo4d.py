"""Ego-Exo4D's atomic descriptions, `atomic_descriptions_*.json`, and keysteps, `keystep_*.json`.

Formats: https://docs.ego-exo4d-data.org/annotations/atomic_descriptions/ and .../annotations/keystep/; that
of `takes.json`: https://docs.ego-exo4d-data.org/data/metadata/. A video is called by its take's name.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from train.data.annotations import AnnotatedVideo, Segment, Skipped
from train.data.readers.decoding import Name, decode_file, once_each
from train.data.segments import sound

TAKES = "takes.json"
EGO_VIEW = "_214-1"  # the glasses' colour camera: takes/<take_name>/frame_aligned_videos/aria01_214-1.mp4
_NO = (False, "0", "false")  # the release writes flags in both ways


class Take(msgspec.Struct):
    take_uid: str
    take_name: str
    duration_sec: float | None = None


class Description(msgspec.Struct):
    timestamp: float
    text: str
    ego_visible: bool | int | str | None = None


class Annotation(msgspec.Struct):
    descriptions: list[Description] = []
    rejected: bool | int | str | None = None


class DescriptionFile(msgspec.Struct):
    annotations: dict[Name, list[Annotation]]
    split: str = ""


class Keystep(msgspec.Struct):
    start_time: float
    end_time: float
    step_name: str


class KeystepTake(msgspec.Struct):
    take_name: str
    segments: list[Keystep]
    scenario: str = ""


class KeystepFile(msgspec.Struct):
    annotations: dict[Name, KeystepTake]
    split: str = ""


def read_descriptions(path: Path, skipped: Skipped) -> list[AnnotatedVideo]:
    """One entry for each annotator of a take. Left out is what the camera wearer's view does not show.

    The file knows takes by number alone, so the release's `takes.json` must lie beside it or one folder up,
    where the release's own downloader puts it. Raises ValueError where it doesn't.
    """
    file = decode_file(path, DescriptionFile, "Ego-Exo4D's atomic_descriptions_*.json")
    takes = _takes(path)
    videos = []
    for number, by_annotator in file.annotations.items():
        take = takes.get(number)
        if take is None:
            skipped.add(f"take that {TAKES} doesn't know", number)
            continue
        for annotation in by_annotator:
            if annotation.rejected not in (None, *_NO):
                skipped.add("annotation that was rejected", take.take_name)
                continue
            shown = _shown(annotation, take.take_name, skipped)
            segments = sound(shown, take.take_name, take.duration_sec, skipped)
            if segments:
                videos.append(AnnotatedVideo(take.take_name, segments, take.duration_sec, file.split))
            else:
                skipped.add("annotation without descriptions", take.take_name)
    return videos


def read_keysteps(path: Path, skipped: Skipped) -> list[AnnotatedVideo]:
    """The takes with their keysteps by the taxonomy's names; the scenario is the task."""
    file = decode_file(path, KeystepFile, "Ego-Exo4D's keystep_*.json")
    once_each([take.take_name for take in file.annotations.values()], path)
    videos = []
    for take in file.annotations.values():
        steps = (Segment(step.start_time, step.step_name, step.end_time) for step in take.segments)
        segments = sound(steps, take.take_name, None, skipped)
        if segments:
            videos.append(AnnotatedVideo(take.take_name, segments, split=file.split, task=take.scenario))
        else:
            skipped.add("video without keysteps", take.take_name)
    return videos


def take_of(clip: Path) -> str | None:
    """The name of the take whose ego view a clip of the release is, in any size; None for other clips."""
    folders = clip.parent.parts
    if not clip.stem.endswith(EGO_VIEW) or "frame_aligned_videos" not in folders[1:]:
        return None
    return folders[folders.index("frame_aligned_videos", 1) - 1]


def _takes(annotation: Path) -> dict[str, Take]:
    for folder in annotation.absolute().parents[:2]:
        if (folder / TAKES).is_file():
            takes = decode_file(folder / TAKES, list[Take], f"Ego-Exo4D's {TAKES}")
            return {take.take_uid: take for take in takes}
    raise ValueError(
        f"{annotation} needs {TAKES}, which names the takes: get it with the release's metadata "
        "and put it beside the file or one folder up"
    )


def _shown(annotation: Annotation, take: str, skipped: Skipped) -> list[Segment]:
    shown = []
    for description in annotation.descriptions:
        if description.ego_visible in _NO:
            skipped.add(
                "description of what the ego view doesn't show", f"{take} at {description.timestamp:g} s"
            )
        else:
            shown.append(Segment(description.timestamp, description.text))
    return shown
