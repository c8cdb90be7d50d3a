"""Connectors: vision features of a frame to embeddings that the decoder reads."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from videollm.configuration import ConnectorConfig


class MLPConnector(nn.Sequential):
    """Linear-GELU-Linear, with the parameter names of VideoLLM-online (`0.weight`, `2.weight`, ...)."""

    def __init__(self, vision_size: int, text_size: int) -> None:
        super().__init__(nn.Linear(vision_size, text_size), nn.GELU(), nn.Linear(text_size, text_size))


class ClassNameConnector(nn.Module):
    """Features -> classifier -> softmax -> the decoder's own embeddings of the classes' names.

    A small decoder understands such a token from the first moment, because it lies where its words lie.
    Classes come in groups with a softmax each (ImageNet's classes, then those learned here with one for
    "nothing of these"), so that one group can be silent while another speaks. Where it is `gated`, the groups
    before the last speak only as far as the last one sees nothing of its own: a softmax has to name something
    even where it knows nothing of what is seen. A free path beside it, which starts at zero, carries what no
    name says, and a learned vector tells each place of the frame.
    """

    def __init__(
        self,
        vision_size: int,
        text_size: int,
        places: int,
        groups: list[int],
        hidden_size: int,
        gated: bool = False,
    ) -> None:
        super().__init__()
        self.groups = groups
        self.gated = gated
        self.classifier = nn.Linear(vision_size, sum(groups))
        self.inverse_temperature = nn.Parameter(torch.ones(len(groups)))
        self.names = nn.Linear(sum(groups), text_size, bias=False)
        self.places = nn.Parameter(torch.zeros(places, text_size))
        silent = nn.Linear(hidden_size, text_size)
        nn.init.zeros_(silent.weight)
        nn.init.zeros_(silent.bias)
        self.free = nn.Sequential(nn.Linear(vision_size, hidden_size), nn.GELU(), silent)

    def forward(self, features: Tensor) -> Tensor:
        """Features [frames, places, vision_size] to embeddings [frames, places, text_size]."""
        return self.speak(self.shares(features)) + self.free(features)

    def shares(self, features: Tensor) -> Tensor:
        """How much of each class is seen, [frames, places, classes]; each group sums to 1, or, where the
        last one gates it, to that one's share of its last class."""
        logits = self.classifier(features).split(self.groups, dim=-1)
        scaled = (group * scale for group, scale in zip(logits, self.inverse_temperature, strict=True))
        *others, last = [group.softmax(-1) for group in scaled]
        if self.gated:
            others = [group * last[..., -1:] for group in others]
        return torch.cat([*others, last], dim=-1)

    def speak(self, shares: Tensor) -> Tensor:
        """Shares of classes to the mixed embeddings of their names, each place told apart."""
        return self.names(shares) + self.places


def build_connector(config: ConnectorConfig, vision_size: int, text_size: int, places: int) -> nn.Module:
    if config.kind == "mlp":
        return MLPConnector(vision_size, text_size)
    if config.kind == "class_names":
        return ClassNameConnector(
            vision_size, text_size, places, config.groups, config.hidden_size or text_size, config.gated
        )
    raise ValueError(f'connector kind must be "mlp" or "class_names", got {config.kind!r}')
