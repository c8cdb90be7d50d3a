"""What the default model learns from: composed clips, albums and photographs, as logits of classes.

The connector speaks names by a classifier that is no part of the decoder's training, so that its logits are
all that the decoder needs to see. They are cross-fitted: a picture's come from a classifier that has not seen
it, and the decoder meets it as unsure, and as wrong, as it will be on pictures that nobody has seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
from rich.console import Console
from torch import nn

from train import classifier
from train.compose import album, changes
from train.features import (
    ClipFeatures,
    PhotographFeatures,
    clip_features,
    footage_features,
    photograph_features,
)
from train.media import load_media
from train.vocabulary import load_vocabulary
from videollm import bases
from videollm.checkpoints import build
from videollm.configuration import VideoLLMConfig
from videollm.inference import prepare_tower
from videollm.vision import VisionTower

console = Console()


@dataclass(frozen=True)
class Material:
    """Features are logits here, float16 [.., tokens, classes]."""

    photographs: list[PhotographFeatures]
    composed: list[ClipFeatures]
    albums: list[ClipFeatures]
    changes: list[ClipFeatures]
    names: list[list[str]]  # `spoken_names`
    known: set[str]  # whose photographs ImageNet's group names well
    classifiers: list[nn.Linear]  # of each group, the learned one fitted on everything


@dataclass
class _Fold:
    photographs: list[PhotographFeatures]
    composed: list[ClipFeatures]
    albums: list[ClipFeatures]
    changes: list[ClipFeatures]

    def judged(self, judge: Callable[[np.ndarray], np.ndarray]) -> _Fold:
        """The same with logits in place of features."""
        return _Fold(
            [replace(item, features=judge(item.features)) for item in self.photographs],
            [replace(item, features=judge(item.features)) for item in self.composed],
            [replace(item, features=judge(item.features)) for item in self.albums],
            [replace(item, features=judge(item.features)) for item in self.changes],
        )


def class_names() -> list[str]:
    """ImageNet's 1000 names, in the order of its classifier."""
    return (Path(__file__).parent / "imagenet_names.txt").read_text().splitlines()


def spoken_names() -> list[list[str]]:
    """The names of the connector's classes, by group: ImageNet's, then those learned here and "nothing"."""
    return [class_names(), [*sorted({entry.name for entry in load_vocabulary().entries}), "nothing"]]


def vision_tower() -> VisionTower:
    """The frozen one that all of it is seen through, as fast as the CPU has it."""
    names = VideoLLMConfig(language_model_name=bases.SMOLLM2, vision_name=bases.EFFICIENTNET_LITE0)
    return prepare_tower(build(names).vision_tower)


def prepare(data: Path, work: Path, clips: int, albums: int, seed: int) -> Material:
    """Compose, look and classify, or read what `work` holds already: so many clips and albums in all, and
    half as many albums of changes."""
    tower, media = vision_tower(), load_media(data, "train")
    stills = footage_features(media, tower, work / "footage", seed)
    parts, folds = media.folds(), []
    for number, part in enumerate(parts):
        share = range(number * clips // len(parts), (number + 1) * clips // len(parts))
        pages = range(albums // len(parts))
        changing = range((len(pages) + 1) // 2)
        photographs = photograph_features(part, tower, work / f"photographs-{number}", seed + number)
        folds.append(
            _Fold(
                photographs + stills[number :: len(parts)],
                clip_features(part, tower, share, work / f"clips-{number}"),
                clip_features(part, tower, pages, work / f"albums-{number}", album),
                clip_features(part, tower, changing, work / f"changes-{number}", changes),
            )
        )
    vocabulary, imagenet = load_vocabulary(), bases.imagenet_classifier()
    names = spoken_names()
    imagenet_names, [*learned, _] = names
    photographs = [photograph for fold in folds for photograph in fold.photographs]
    known = classifier.known_to_imagenet(photographs, imagenet, imagenet_names, vocabulary)
    console.print(f"known to ImageNet already: {', '.join(sorted(known))}")

    def fit(seen: list[_Fold]) -> nn.Linear:
        scenes = [clip for fold in seen for clip in (*fold.composed, *fold.albums, *fold.changes)]
        return classifier.fit([p for fold in seen for p in fold.photographs], scenes, learned, known, seed)

    whole = fit(folds)
    judged = []
    for fold in folds:
        unseeing = fit([other for other in folds if other is not fold])
        judged.append(fold.judged(partial(classifier.classify, imagenet, unseeing)))
    return Material(
        photographs=[*chain(*(fold.photographs for fold in judged))],
        composed=[*chain(*(fold.composed for fold in judged))],
        albums=[*chain(*(fold.albums for fold in judged))],
        changes=[*chain(*(fold.changes for fold in judged))],
        names=names,
        known=known,
        classifiers=[imagenet, whole],
    )
