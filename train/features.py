"""Vision features of everything the default model learns from, computed once and kept on disk.

The vision tower is frozen, so that hours of training read features of a frame (10 x 1280, half precision)
instead of running the tower again.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from rich.progress import track

from train.compose import FPS, Composition, Happening, Sight, compose, crop, happenings_of, pan
from train.data.encoding import encode
from train.media import Media
from videollm.files import written_whole
from videollm.vision import VisionTower

CROPS = 2
CLOSEST = 0.5  # share of a frame's sides
MOST_A_NAME = 60
NO_FRAMES = np.empty((0, 0, 0, 3), np.uint8)
Labels = tuple[tuple[tuple[Sight, ...], ...], tuple[Happening, ...], str]


@dataclass(frozen=True)
class ClipFeatures:
    """A composition without its pixels, and its features, float16 [frames, tokens, dim]."""

    clip: Composition
    features: np.ndarray


def join(pieces: list[tuple[ClipFeatures, np.ndarray]]) -> ClipFeatures:
    """Frames of clips one after the other as a clip: of each piece those of its indices, in their order.

    A piece begins with a cut, so that an excerpt is a piece alone: what is seen in its first frame appears
    there. An index that stands again and again is a scene in which nothing moves.
    """
    sights: list[tuple[Sight, ...]] = []
    cuts: set[int] = set()
    for clip, indices in pieces:
        inner = {round(happening.time * FPS) for happening in clip.clip.happenings if happening.cut}
        cuts |= {len(sights) + at for at, index in enumerate(indices) if at == 0 or int(index) in inner}
        sights += [clip.clip.sights[index] for index in indices]
    labels = Composition(
        frames=NO_FRAMES,
        sights=tuple(sights),
        happenings=happenings_of(tuple(sights), cuts),
        kind="+".join(clip.clip.kind for clip, _ in pieces),
        seed=pieces[0][0].clip.seed,
    )
    return ClipFeatures(labels, np.concatenate([clip.features[indices] for clip, indices in pieces]))


@dataclass(frozen=True)
class PhotographFeatures:
    """Crops of one photograph: float16 [crops, tokens, dim]."""

    name: str
    features: np.ndarray


def photograph_features(
    media: Media, tower: VisionTower, folder: Path, seed: int
) -> list[PhotographFeatures]:
    """Features of `CROPS` views of up to `MOST_A_NAME` photographs a name, kept by name in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    examples = []
    for name, photographs in track(media.by_name.items(), "features of photographs"):
        path = folder / f"{name}.npy"
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        if not path.is_file():
            chosen = rng.permutation(len(photographs))[:MOST_A_NAME]
            views = [pan(photographs[index].pixels(), CROPS, rng) for index in chosen]
            _save(path, encode(tower, np.concatenate(views)))
        examples += _kept(path, name)
    return examples


def footage_features(media: Media, tower: VisionTower, folder: Path, seed: int) -> list[PhotographFeatures]:
    """The same of the frames of footage, each seen whole and from closer: elsewhere the same is larger."""
    folder.mkdir(parents=True, exist_ok=True)
    examples = []
    for footage in track(media.footage, "features of footage"):
        path = folder / f"{zlib.crc32(footage.data):08x}.npy"
        rng = np.random.default_rng([seed, zlib.crc32(footage.data)])
        if not path.is_file():
            views = []
            for frame in footage.frames(FPS):
                closer = crop(frame, *rng.uniform((CLOSEST, 0, 0), 1))
                views += [pan(frame, 1, rng), pan(closer, 1, rng)]
            _save(path, encode(tower, np.concatenate(views)))
        examples += _kept(path, footage.name)
    return examples


def _kept(path: Path, name: str) -> list[PhotographFeatures]:
    """What a file holds of pictures of one thing, `CROPS` views of each, one after the other."""
    features = np.load(path)  # [pictures * CROPS, tokens, dim]
    return [PhotographFeatures(name, crops) for crops in features.reshape(-1, CROPS, *features.shape[1:])]


def clip_features(
    media: Media,
    tower: VisionTower,
    seeds: range,
    folder: Path,
    make: Callable[[Media, int], Composition] = compose,
) -> list[ClipFeatures]:
    """Features of what is made of these seeds, computed where the folder doesn't hold them yet."""
    folder.mkdir(parents=True, exist_ok=True)
    clips = []
    for seed in track(seeds, description=f"features of clips in {folder.name}"):
        labels, features = folder / f"{seed}.json", folder / f"{seed}.npy"
        if not labels.is_file():
            clip = make(media, seed)
            _save(features, encode(tower, clip.frames))
            labels.write_bytes(msgspec.json.encode([clip.sights, clip.happenings, clip.kind]))
        sights, happenings, kind = msgspec.json.decode(labels.read_bytes(), type=Labels)
        clip = Composition(NO_FRAMES, sights, happenings, kind, seed)
        clips.append(ClipFeatures(clip, np.load(features)))
    return clips


def _save(path: Path, array: np.ndarray) -> None:
    with written_whole(path) as partial, partial.open("wb") as file:
        np.save(file, array)
