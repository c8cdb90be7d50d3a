"""Real pictures and clips that the default model learns from, read where they lie.

Tar files of the data folder, as they are: `caltech101.tar` (Caltech-101; CC BY 4.0), `grocery.tar`
(GroceryStoreDataset; MIT), `clothing.tar` (clothing-dataset-small; free for any purpose), `hands.tar`
(Sign-Language-Digits-Dataset; Apache-2.0) and `videos.tar` (Intel sample-videos; CC BY 4.0). Cut-outs with
transparency come from Debian's `tuxpaint-stamps-default` (GPL-2; never copied), pedestrians from its
`opencv-doc` (Apache-2.0), textures from scikit-image.

The split is by a hash of the file's name, so that it stays the same whatever is added: about a quarter of the
photographs are held out, all of grocery's `val/`, four of the clips and the second half of the pedestrians.
Cut-outs and textures are the same in both: there is one picture of most.
"""

from __future__ import annotations

import io
import itertools
import math
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal

import av
import cv2
import numpy as np
import skimage.data
from PIL import Image

from train.vocabulary import Vocabulary, load_vocabulary

Split = Literal["train", "heldout"]
STAMPS = Path("/usr/share/tuxpaint/stamps")
HELD_OUT_PERCENT = 25
FOLDS = 3
LONGEST_SIDE = 320
# What is seen all through these clips. Held out: the ones named in HELD_OUT_CLIPS.
CLIPS = {
    "asl_gestures/": "person",
    "bottle-detection.mp4": "bottle",
    "face-demographics": "person",
    "head-pose": "person",
    "worker-zone": "person",
}
HELD_OUT_CLIPS = ("milk", "sorry", "student", "head-pose-face-detection-female.gif")
PEDESTRIANS = Path("/usr/share/doc/opencv-doc/examples/data/vtest.avi")  # seen from above, on a street
LEARNED_SECONDS = 39.0  # of 79.5
TEXTURES = ("brick", "grass", "gravel")


class MediaError(Exception):
    """A folder or package that training needs is missing; the message says how to get it."""


@dataclass(frozen=True)
class Photograph:
    """A photograph of one thing."""

    name: str
    source: str
    data: bytes = field(repr=False)

    def pixels(self) -> np.ndarray:
        """RGB, uint8 [height, width, 3], longest side at most `LONGEST_SIDE`."""
        return _decode(self)


@dataclass(frozen=True)
class CutOut:
    """A thing with its outline."""

    name: str
    path: Path

    def pixels(self) -> np.ndarray:
        """RGBA, uint8 [height, width, 4], cropped to what is opaque."""
        return _stamp(self.path)


@dataclass(frozen=True)
class Footage:
    """A clip in which one thing is seen all through, up to its `end` in seconds."""

    name: str
    data: bytes = field(repr=False)
    end: float = math.inf

    def frames(self, fps: float) -> np.ndarray:
        """RGB at `fps`, uint8 [frames, height, width, 3]."""
        return _footage(self.data, fps, self.end)


@dataclass(frozen=True)
class Media:
    photographs: list[Photograph]
    cutouts: list[CutOut]
    footage: list[Footage]
    textures: list[np.ndarray]

    @cached_property
    def by_name(self) -> dict[str, list[Photograph]]:
        """Photographs by what they show."""
        groups: dict[str, list[Photograph]] = {}
        for photograph in self.photographs:
            groups.setdefault(photograph.name, []).append(photograph)
        return dict(sorted(groups.items()))

    def photograph(self, rng: np.random.Generator) -> Photograph:
        """One at random: every name is as likely as every other."""
        names = list(self.by_name)
        group = self.by_name[names[rng.integers(len(names))]]
        return group[rng.integers(len(group))]

    def folds(self) -> list[Media]:
        """The same media with their photographs dealt out to `FOLDS` folds, by a hash of the file's name."""
        dealt = [zlib.crc32(photograph.source.encode()) // 100 % FOLDS for photograph in self.photographs]
        return [
            replace(
                self, photographs=list(itertools.compress(self.photographs, (at == fold for at in dealt)))
            )
            for fold in range(FOLDS)
        ]


def load_media(folder: Path, split: Split) -> Media:
    """All media of a split. MediaError where the folder's files or Debian's are missing."""
    vocabulary = load_vocabulary()
    photographs = [
        Photograph(vocabulary.by_source[kind].name, source, data)
        for kind, source, data, held_out in _labelled(folder)
        if kind in vocabulary.by_source and held_out == (split == "heldout")
    ]
    footage = [
        Footage(next(name for part, name in CLIPS.items() if part in source), data)
        for source, data in _members(folder / "videos.tar")
        if any(part in source for part in CLIPS)
        and any(part in source for part in HELD_OUT_CLIPS) == (split == "heldout")
    ]
    if split == "train":
        footage.append(Footage("person", pedestrians().read_bytes(), LEARNED_SECONDS))
    return Media(photographs, _cutouts(vocabulary), footage, _textures())


def pedestrians() -> Path:
    """The clip of people on a street, all of it. MediaError where it isn't installed."""
    if not PEDESTRIANS.is_file():
        raise MediaError("the pedestrians are missing; install them with: apt-get install opencv-doc")
    return PEDESTRIANS


def _labelled(folder: Path) -> Iterator[tuple[str, str, bytes, bool]]:
    """(vocabulary source, file, bytes, held out) of every photograph."""
    for file, data in _members(folder / "caltech101.tar"):
        yield f"caltech:{file.split('/')[0]}", f"caltech101/{file}", data, _hash_held_out(file)
    for file, data in _members(folder / "grocery.tar"):
        part, *_ = file.split("/")
        if part in ("train", "val") and file.endswith(".jpg"):
            kind = file.rsplit("/", 1)[-1].rsplit("_", 1)[0]
            yield f"grocery:{kind}", f"grocery/{file}", data, part == "val"
    for file, data in _members(folder / "clothing.tar"):
        yield f"clothing:{file.split('/')[-2]}", f"clothing/{file}", data, _hash_held_out(file)
    for file, data in _members(folder / "hands.tar"):
        yield "hands:*", f"hands/{file}", data, _hash_held_out(file)


def _hash_held_out(file: str) -> bool:
    # Caltech's "Faces_easy" are crops of its "Faces": held out where both are.
    same = {file, file.replace("Faces/", "Faces_easy/"), file.replace("Faces_easy/", "Faces/")}
    return all(zlib.crc32(name.encode()) % 100 < HELD_OUT_PERCENT for name in same)


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    if not path.is_file():
        raise MediaError(f"{path} is missing; give the folder with the data's tar files (--data)")
    with tarfile.open(path) as archive:
        for member in archive:
            reader = archive.extractfile(member) if member.isfile() else None
            if reader is not None:
                yield member.name.removeprefix("./"), reader.read()


def _cutouts(vocabulary: Vocabulary) -> list[CutOut]:
    if not STAMPS.is_dir():
        raise MediaError(
            "the cut-outs are missing; install them with: apt-get install tuxpaint-stamps-default"
        )
    return [
        CutOut(entry.name, STAMPS / f"{source.removeprefix('stamp:')}.png")
        for entry in vocabulary.entries
        for source in entry.sources
        if source.startswith("stamp:")
    ]


def _textures() -> list[np.ndarray]:
    return [cv2.cvtColor(getattr(skimage.data, name)(), cv2.COLOR_GRAY2RGB) for name in TEXTURES]


@lru_cache(maxsize=2500)
def _decode(photograph: Photograph) -> np.ndarray:
    return _bounded(np.asarray(Image.open(io.BytesIO(photograph.data)).convert("RGB")))


@lru_cache(maxsize=400)
def _stamp(path: Path) -> np.ndarray:
    image = np.asarray(Image.open(path).convert("RGBA"))
    rows, columns = (np.flatnonzero((image[..., 3] > 30).any(axis)) for axis in (1, 0))
    return _bounded(image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])


@lru_cache(maxsize=32)
def _footage(data: bytes, fps: float, end: float) -> np.ndarray:
    frames, next_time = [], 0.0
    with av.open(io.BytesIO(data), "r") as container:
        for frame in container.decode(video=0):
            if frame.time is not None and frame.time >= end:
                break
            if frame.time is None or frame.time + 1e-6 >= next_time:
                frames.append(_bounded(frame.to_ndarray(format="rgb24")))
                next_time += 1 / fps
    return np.stack(frames)


def _bounded(image: np.ndarray) -> np.ndarray:
    scale = LONGEST_SIDE / max(image.shape[:2])
    if scale >= 1:
        return image
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)
