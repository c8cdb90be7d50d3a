"""Readers of annotation: one format a file, by the name that a command is given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from train.data.annotations import AnnotatedVideo, Skipped
from train.data.readers import (
    coin,
    ego4d_goalstep,
    ego4d_lta,
    ego4d_narrations,
    egoexo4d,
    epic_kitchens,
    own_jsonl,
)

__all__ = ["READERS", "read_annotation"]

Reader = Callable[[Path, Skipped], list[AnnotatedVideo]]

READERS: dict[str, Reader] = {
    "ego4d-narrations": ego4d_narrations.read,
    "ego4d-lta": ego4d_lta.read,
    "ego4d-goalstep": ego4d_goalstep.read,
    "coin": coin.read,
    "egoexo4d-descriptions": egoexo4d.read_descriptions,
    "egoexo4d-keysteps": egoexo4d.read_keysteps,
    "epic-kitchens": epic_kitchens.read,
    "jsonl": own_jsonl.read,
}


def read_annotation(kind: str, path: Path, skipped: Skipped) -> list[AnnotatedVideo]:
    """What an annotation file holds. Segments and videos that can't be used are counted in `skipped`.

    Raises ValueError naming the file and where in it for one that is malformed, of another format or version,
    or without anything to use, and OSError for one that can't be read.
    """
    if kind not in READERS:
        raise ValueError(f"there is no reader {kind!r}; there are {', '.join(READERS)}")
    videos = READERS[kind](path, skipped)
    if not videos:
        raise ValueError(
            f"{path} holds nothing that can be used" + (f": {skipped}" if skipped.counts else "")
        )
    return videos
