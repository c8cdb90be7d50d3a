"""Lessons with other names: labels and logits are exchanged alike; what another group speaks of is not."""

from __future__ import annotations

import numpy as np

from train.compose import Composition, Sight, happenings_of
from train.features import NO_FRAMES, ClipFeatures, PhotographFeatures
from train.renaming import Renaming

IMAGENET = ["tench", "leopard"]
NAMES = ["cat", "cup", "hat", "leopard", "walnut", "nothing"]
RENAMING = Renaming(NAMES, {"leopard"})


def logits(name: str) -> np.ndarray:
    """Of one frame of one token, by which only this name is seen."""
    row = np.zeros((1, 1, len(IMAGENET) + len(NAMES)), np.float16)
    row[..., 1] = 3
    row[..., len(IMAGENET) + NAMES.index(name)] = 9
    return row


def seen(row: np.ndarray) -> str:
    return NAMES[int(row[0, len(IMAGENET) :].argmax())]


def test_a_clip_tells_what_its_logits_say() -> None:
    stream = ["cat", "cup", "leopard", "cat"]
    sights = tuple((Sight(name, "left"),) for name in stream)
    labels = Composition(NO_FRAMES, sights, happenings_of(sights, set()), "scene", 0)
    clip = ClipFeatures(labels, np.concatenate([logits(name) for name in stream]))
    drawn = [RENAMING.clip(clip, np.random.default_rng(seed)) for seed in range(60)]
    for renamed in drawn:
        told = [sights[0].name for sights in renamed.clip.sights]
        assert told == [seen(row) for row in renamed.features]
        assert told[2] == "leopard" and told[0] == told[3] != told[1] and "nothing" not in told
        assert renamed.clip.happenings == happenings_of(renamed.clip.sights, set())
        assert (renamed.features[..., : len(IMAGENET)] == clip.features[..., : len(IMAGENET)]).all()
    assert {renamed.clip.sights[0][0].name for renamed in drawn} == set(NAMES) - {"leopard", "nothing"}
    assert any(renamed is clip for renamed in drawn)


def test_a_photograph_too() -> None:
    photograph = PhotographFeatures("cat", logits("cat"))
    for seed in range(20):
        renamed = RENAMING.photograph(photograph, np.random.default_rng(seed))
        assert seen(renamed.features[0]) == renamed.name
