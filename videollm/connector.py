"""Connectors: vision features of a frame to embeddings that the decoder reads."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from videollm.configuration import ConnectorConfig


class MLPConnector(nn.Sequential):
    """Linear-GELU-Linear, with the parameter names of VideoLLM-online (`0.weight`, `2.weight`, ...)."""

    def __init__(self, vision_size: int, text_size: int) -> None:
        super().__init__(nn.Linear(vision_size, text_size), nn.GELU(), nn.Linear(text_size, text_size))


class GroupedClassifier(nn.Linear):
    """Linear of each group of classes on features to the power of that group, their signs kept.

    A root evens out features of which a few are large and most are near zero: power normalisation
    (Perronnin, Sanchez and Mensink 2010, "Improving the Fisher kernel").
    """

    def __init__(self, features: int, groups: list[int], powers: list[float]) -> None:
        super().__init__(features, sum(groups))
        self.groups = groups
        self.powers = powers

    def forward(self, features: Tensor) -> Tensor:
        """Features [.., features] to logits [.., classes]."""
        parts = zip(self.weight.split(self.groups), self.bias.split(self.groups), self.powers, strict=True)
        return torch.cat(
            [F.linear(to_power(features, power), weight, bias) for weight, bias, power in parts], dim=-1
        )


def to_power(features: Tensor, power: float) -> Tensor:
    return features if power == 1 else features.abs().pow(power).copysign(features)


class ClassNameConnector(nn.Module):
    """Features -> classifier -> softmax -> the decoder's own embeddings of the classes' names.

    A small decoder understands such a token from the first moment, because it lies where its words lie, and
    has no way past the names to learn pictures by heart. Classes come in groups with a softmax each
    (ImageNet's classes, then those learned here with one for "nothing of these"). The groups before the last
    speak only as far as the last one sees nothing of its own: a softmax has to name something even where it
    knows nothing of what is seen. A learned vector tells each place of the frame.
    """

    def __init__(
        self, vision_size: int, text_size: int, places: int, groups: list[int], powers: list[float]
    ) -> None:
        super().__init__()
        self.groups = groups
        self.classifier = GroupedClassifier(vision_size, groups, powers)
        self.inverse_temperature = nn.Parameter(torch.ones(len(groups)))
        self.names = nn.Linear(sum(groups), text_size, bias=False)
        self.places = nn.Parameter(torch.zeros(places, text_size))

    def forward(self, features: Tensor) -> Tensor:
        """Features [frames, places, vision_size] to embeddings [frames, places, text_size]."""
        return self.speak(self.classifier(features))

    def speak(self, logits: Tensor) -> Tensor:
        """Logits of the classes [frames, places, classes] to the mixed embeddings of their names."""
        return self.names(self.shares(logits)) + self.places

    def shares(self, logits: Tensor) -> Tensor:
        """How much of each class is seen, [frames, places, classes]: the last group sums to 1, the others to
        its share of its last class."""
        scaled = (
            group * scale
            for group, scale in zip(logits.split(self.groups, dim=-1), self.inverse_temperature, strict=True)
        )
        *others, last = [group.softmax(-1) for group in scaled]
        return torch.cat([*(group * last[..., -1:] for group in others), last], dim=-1)


def build_connector(config: ConnectorConfig, vision_size: int, text_size: int, places: int) -> nn.Module:
    if config.kind == "mlp":
        return MLPConnector(vision_size, text_size)
    if config.kind == "class_names":
        return ClassNameConnector(vision_size, text_size, places, config.groups, config.powers)
    raise ValueError(f'connector kind must be "mlp" or "class_names", got {config.kind!r}')
