"""EfficientNet-lite0: the small vision tower of the default model (Tan & Le 2019, "lite" variant of 2020).

The lite variant drops squeeze-and-excitation and uses ReLU6. Batch normalisation is folded into the
convolutions when weights are imported, so that the tower holds convolutions only and is for inference:
44 ms an image becomes about half of that on two CPU cores.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

BATCH_NORM_EPS = 1e-3
# (kernel, stride, expansion, output channels, repeats) of each stage.
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
STEM_CHANNELS = 32


class EfficientNetLiteConfig(PreTrainedConfig):
    """A picture of `image_size` pixels a side becomes a map a 32nd of that. It was trained at 224; of 288 the
    map is 9 x 9, whose pools of 3 x 3 don't overlap, and small things are seen larger."""

    model_type = "efficientnet_lite"

    def __init__(self, image_size: int = 288, hidden_size: int = 1280, **kwargs: Any) -> None:
        self.image_size = image_size
        self.hidden_size = hidden_size
        super().__init__(**kwargs)


class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's "SAME" padding, which is uneven where the stride is 2."""

    def forward(self, x: Tensor) -> Tensor:
        height, width = (
            max((-(-size // self.stride[0]) - 1) * self.stride[0] + self.kernel_size[0] - size, 0)
            for size in x.shape[-2:]
        )
        x = F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
        return super().forward(x)


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise k x k, project 1x1; a residual where shapes allow."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand = nn.Conv2d(inputs, hidden, 1) if expansion > 1 else None
        self.depthwise = SameConv2d(hidden, hidden, kernel, stride, groups=hidden)
        self.project = nn.Conv2d(hidden, outputs, 1)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        hidden = x if self.expand is None else F.relu6(self.expand(x))
        out = self.project(F.relu6(self.depthwise(hidden)))
        return x + out if self.residual else out


class EfficientNetLite(PreTrainedModel):
    """Pictures [frames, 3, 288, 288], normalised to about -1..1, to features [frames, 1280, 9, 9]."""

    config_class = EfficientNetLiteConfig
    main_input_name = "pixel_values"

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        self.stem = SameConv2d(3, STEM_CHANNELS, 3, stride=2)
        blocks, channels = [], STEM_CHANNELS
        for kernel, stride, expansion, outputs, repeats in STAGES:
            for repeat in range(repeats):
                blocks.append(
                    InvertedResidual(channels, outputs, kernel, stride if repeat == 0 else 1, expansion)
                )
                channels = outputs
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Conv2d(channels, config.hidden_size, 1)
        self.post_init()

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = F.relu6(self.stem(pixel_values.contiguous(memory_format=torch.channels_last)))
        for block in self.blocks:
            x = block(x)
        return F.relu6(self.head(x))  # [frames, 1280, 9, 9]


def import_weights(source: dict[str, Tensor]) -> tuple[dict[str, Tensor], nn.Linear]:
    """Fold the published weights (`_blocks.N._depthwise_conv`, `_bn1`, ...) into this module's names.

    Returns the tower's state and the ImageNet classifier, Linear(1280, 1000).
    """

    def folded(conv: str, norm: str) -> dict[str, Tensor]:
        scale = source[f"{norm}.weight"] / (source[f"{norm}.running_var"] + BATCH_NORM_EPS).sqrt()
        return {
            "weight": source[f"{conv}.weight"] * scale[:, None, None, None],
            "bias": source[f"{norm}.bias"] - source[f"{norm}.running_mean"] * scale,
        }

    parts = {"stem": folded("_conv_stem", "_bn0"), "head": folded("_conv_head", "_bn1")}
    for index in range(sum(repeats for *_, repeats in STAGES)):
        old, new = f"_blocks.{index}.", f"blocks.{index}."
        if f"{old}_expand_conv.weight" in source:
            parts[f"{new}expand"] = folded(f"{old}_expand_conv", f"{old}_bn0")
        parts[f"{new}depthwise"] = folded(f"{old}_depthwise_conv", f"{old}_bn1")
        parts[f"{new}project"] = folded(f"{old}_project_conv", f"{old}_bn2")
    state = {f"{module}.{name}": value for module, part in parts.items() for name, value in part.items()}

    weight = source["_fc.weight"]  # [1000, 1280]
    classifier = nn.Linear(weight.shape[1], weight.shape[0])
    classifier.load_state_dict({"weight": weight, "bias": source["_fc.bias"]})
    return state, classifier


AutoConfig.register("efficientnet_lite", EfficientNetLiteConfig)
AutoModel.register(EfficientNetLiteConfig, EfficientNetLite)
