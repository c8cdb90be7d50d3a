"""The second group of the connector's classifier: the vocabulary's names, learned from features.

A multinomial regression on frozen features, over the vocabulary's names and "nothing of these". Photographs
of things that the ImageNet group names well by itself count as "nothing of these" here: they are what
teaches this group to be silent about pictures that are none of its business. In scenes, where ImageNet names
them badly, they have their names.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F

from train.features import ClipFeatures, PhotographFeatures
from train.vocabulary import Vocabulary
from videollm.connector import to_power

KNOWN_ACCURACY = 0.9
EPOCHS = 20
BATCH = 512
DROPOUT = 0.5
POWER = 0.5  # to which features are taken (`videollm.connector.GroupedClassifier`)
# Added to the logit of "nothing of these": nearly all that the lessons show has one of the vocabulary's
# names, what a camera sees mostly has none.
NOTHING_PRIOR = 2.5
# Of the 3 x 3 places, behind the summary: those from top to bottom where a thing is seen.
COLUMNS = {"left": (1, 4, 7), "middle": (2, 5, 8), "right": (3, 6, 9)}
COLUMN_WEIGHTS = (0.2, 0.5, 0.2)
CENTRE = COLUMNS["middle"][1]


class Examples(NamedTuple):
    features: Tensor  # [rows, dim]
    labels: Tensor  # [rows], the index of what they show
    weights: Tensor  # [rows], how much each counts


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


def fit(
    photographs: list[PhotographFeatures],
    clips: list[ClipFeatures],
    names: list[str],
    known: set[str],
    seed: int,
) -> nn.Linear:
    """Linear(dim, names and nothing) on features to `POWER`, by cross-entropy; rare names weigh more, by the
    root of how rare.

    Photographs of what is `known` are nothing of these.
    """
    torch.manual_seed(seed)
    features, labels, weights = _examples(photographs, clips, names, known)
    layer = nn.Linear(features.shape[1], len(names) + 1)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=2e-3, weight_decay=0.02)
    counts = torch.bincount(labels, minlength=len(names) + 1).clamp(min=1).float()
    weights = weights * counts.rsqrt()[labels] * counts.mean().sqrt()
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * (len(labels) // BATCH + 1))
    for _ in track(range(EPOCHS), description="classifier"):
        for chosen in torch.randperm(len(labels)).split(BATCH):
            logits = layer(F.dropout(to_power(features[chosen].float(), POWER), DROPOUT))
            loss = F.cross_entropy(logits, labels[chosen], reduction="none", label_smoothing=0.05)
            optimizer.zero_grad()
            (loss * weights[chosen]).mean().backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        layer.bias[-1] += NOTHING_PRIOR
    return layer


@torch.no_grad()
def classify(imagenet: nn.Linear, learned: nn.Linear, features: np.ndarray) -> np.ndarray:
    """Features [.., tokens, dim] to the logits of both groups' classes, float16 [.., tokens, classes]."""
    rows = torch.from_numpy(features).float()
    return torch.cat([imagenet(rows), learned(to_power(rows, POWER))], dim=-1).half().numpy()


def _examples(
    photographs: list[PhotographFeatures], clips: list[ClipFeatures], names: list[str], known: set[str]
) -> Examples:
    """Rows from whole photographs, from places of composed frames, and from frames that show nothing."""
    index, nothing = {name: position for position, name in enumerate(names)}, len(names)
    rows: list[np.ndarray] = []
    labels: list[int] = []
    weights: list[float] = []

    def add(feature: np.ndarray, label: int, weight: float) -> None:
        rows.append(feature)
        labels.append(label)
        weights.append(weight)

    for photograph in photographs:
        for crop in photograph.features:  # [tokens, dim]
            label = nothing if photograph.name in known else index[photograph.name]
            add(crop[0], label, 1.0)
            add(crop[CENTRE], label, 0.3)
    for clip in clips:
        # Neighbouring frames of a clip are nearly the same picture: every third says enough.
        step = 1 if clip.clip.kind in ("album", "changes") else 3
        for sights, features in list(zip(clip.clip.sights, clip.features, strict=True))[::step]:
            if not sights:
                add(features[0], nothing, 1.0)
                add(features[CENTRE], nothing, 0.3)
            elif len(sights) == 1:
                add(features[0], index[sights[0].name], 1.0)
            for sight in sights:
                for place, weight in zip(COLUMNS[sight.place], COLUMN_WEIGHTS, strict=True):
                    add(features[place], index[sight.name], weight)
    return Examples(torch.from_numpy(np.stack(rows)), torch.tensor(labels), torch.tensor(weights))
