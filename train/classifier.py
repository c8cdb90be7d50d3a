"""The second group of the connector's classifier: names that ImageNet doesn't know, learned from features.

A multinomial regression on frozen features, over the vocabulary's names and "nothing of these". Things that
the ImageNet group already knows well count as "nothing of these" here: they are what teaches this group to
be silent about pictures that are none of its business.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F

from train.features import ClipFeatures, PhotographFeatures
from train.vocabulary import Vocabulary

KNOWN_ACCURACY = 0.9
EPOCHS = 12
BATCH = 512
MIDDLE_ROW = {"left": 4, "middle": 5, "right": 6}  # of the 3 x 3 places, behind the summary
CENTRE = MIDDLE_ROW["middle"]


@dataclass(frozen=True)
class Examples:
    """Single features [rows, dim], the index of what they show, and how much each counts."""

    features: Tensor
    labels: Tensor
    weights: Tensor


def known_to_imagenet(
    photographs: list[PhotographFeatures], imagenet: nn.Linear, class_names: list[str], vocabulary: Vocabulary
) -> set[str]:
    """Names of the vocabulary whose training photographs the ImageNet classifier names right by itself."""
    known = set()
    for name in sorted({photograph.name for photograph in photographs}):
        rows = [p.features[:, 0] for p in photographs if p.name == name]
        logits = imagenet(torch.from_numpy(np.concatenate(rows)).float())  # [crops, 1000]
        said = [class_names[index] for index in logits.argmax(-1).tolist()]
        if np.mean([vocabulary.names_thing(text, name) for text in said]) >= KNOWN_ACCURACY:
            known.add(name)
    return known


def gather(
    photographs: list[PhotographFeatures], clips: list[ClipFeatures], index: dict[str, int], nothing: int
) -> Examples:
    """Rows from whole photographs, from places of composed frames, and from frames that show nothing."""
    rows: list[np.ndarray] = []
    labels: list[int] = []
    weights: list[float] = []

    def add(feature: np.ndarray, label: int, weight: float) -> None:
        rows.append(feature)
        labels.append(label)
        weights.append(weight)

    for photograph in photographs:
        for crop in photograph.features:  # [tokens, dim]
            label = index.get(photograph.name, nothing)
            add(crop[0], label, 1.0)
            add(crop[CENTRE], label, 0.3)
    for clip in clips:
        # Neighbouring frames are nearly the same picture: every third says enough.
        for sights, features in list(zip(clip.clip.sights, clip.features, strict=True))[::3]:
            if not sights:
                add(features[0], nothing, 1.0)
                add(features[CENTRE], nothing, 0.3)
            elif len(sights) == 1:
                add(features[0], index.get(sights[0].name, nothing), 1.0)
            for sight in sights:
                add(features[MIDDLE_ROW[sight.place]], index.get(sight.name, nothing), 0.5)
    return Examples(torch.from_numpy(np.stack(rows)), torch.tensor(labels), torch.tensor(weights))


def fit(examples: Examples, classes: int, seed: int) -> nn.Linear:
    """Linear(dim, classes) by cross-entropy; rare names count as much as the square root of their share."""
    torch.manual_seed(seed)
    layer = nn.Linear(examples.features.shape[1], classes)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=2e-3, weight_decay=0.02)
    counts = torch.bincount(examples.labels, minlength=classes).clamp(min=1).float()
    weights = examples.weights * counts.rsqrt()[examples.labels] * counts.float().mean().sqrt()
    steps = EPOCHS * len(examples.labels) // BATCH
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps + EPOCHS)
    for _ in track(range(EPOCHS), description="classifier"):
        for chosen in torch.randperm(len(examples.labels)).split(BATCH):
            logits = layer(examples.features[chosen].float())
            loss = F.cross_entropy(logits, examples.labels[chosen], reduction="none", label_smoothing=0.05)
            optimizer.zero_grad()
            (loss * weights[chosen]).mean().backward()
            optimizer.step()
            schedule.step()
    return layer
