"""The learned names: whose photographs teach silence, and that scenes have their names."""

from __future__ import annotations

import numpy as np
import torch

from train.classifier import COLUMNS, fit
from train.compose import Composition, Place, Sight
from train.features import NO_FRAMES, ClipFeatures, PhotographFeatures

AXES_EACH, TOKENS = 24, 10
KINDS = ("cat", "cup", "cat in a scene", "cup in a scene", "background")


def view(kind: str, rng: np.random.Generator) -> np.ndarray:
    """A feature of that kind of picture, [dim]."""
    feature = rng.normal(0, 2, (len(KINDS), AXES_EACH))
    feature[KINDS.index(kind)] += 10
    return feature.flatten()


def photograph(name: str, rng: np.random.Generator) -> PhotographFeatures:
    crops = np.stack([[view(name, rng) for _ in range(TOKENS)] for _ in range(2)])
    return PhotographFeatures(name, crops.astype(np.float16))


def page(name: str, place: Place, rng: np.random.Generator) -> ClipFeatures:
    """A frame with a thing in one place, and an empty one."""
    frames = np.stack([[view("background", rng) for _ in range(TOKENS)] for _ in range(2)])
    shown = [0, *COLUMNS[place]]
    frames[0, shown] = [view(f"{name} in a scene", rng) for _ in shown]
    labels = Composition(NO_FRAMES, ((Sight(name, place),), ()), (), "album", 0)
    return ClipFeatures(labels, frames.astype(np.float16))


def test_known_photographs_are_nothing_and_scenes_have_their_names() -> None:
    rng = np.random.default_rng(0)
    photographs = [photograph(name, rng) for name in ("cat", "cup") for _ in range(1000)]
    places: tuple[Place, ...] = ("left", "middle", "right")
    clips = [page(name, places[index % 3], rng) for name in ("cat", "cup") for index in range(1000)]
    layer = fit(photographs, clips, ["cat", "cup"], {"cat"}, seed=0)
    wanted = {"cat": 2, "cup": 1, "cat in a scene": 0, "cup in a scene": 1, "background": 2}
    for kind, label in wanted.items():
        fresh = torch.from_numpy(np.stack([view(kind, rng) for _ in range(20)])).float()
        assert (layer(fresh).argmax(-1) == label).all(), kind
