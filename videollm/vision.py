"""Vision towers behind one interface: pixels of a frame in, 1 + grid x grid features out."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, PreTrainedConfig

from videollm.efficientnet_lite import EfficientNetLiteConfig


class VisionTower(nn.Module):
    """Square frames, uint8 [frames, 3, size, size], to features [frames, cls + grid^2, dim].

    The first feature is the tower's own summary of the picture (where `cls`), the rest are its spatial
    features average-pooled to grid x grid, row by row: the frame tokens of VideoLLM-online.
    """

    mean: ClassVar[tuple[float, float, float]]
    std: ClassVar[tuple[float, float, float]]

    def __init__(self, config: PreTrainedConfig, cls: bool, grid: int) -> None:
        super().__init__()
        self.backbone = AutoModel.from_config(config)
        self.size: int = config.image_size
        self.cls = cls
        self.grid = grid

    def summary_and_map(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised pixels to a summary [frames, dim] and a feature map [frames, dim, rows, columns]."""
        raise TypeError(f"{type(self).__name__} does not say what its features are")

    def forward(self, frames: Tensor) -> Tensor:
        if frames.shape[-2:] != (self.size, self.size):
            raise ValueError(
                f"frames must be {self.size}x{self.size} pixels, got {tuple(frames.shape[-2:])}; "
                "pad and scale them with stream.sources.square.pad_to_square"
            )
        weight = next(self.backbone.parameters())
        mean = torch.tensor(self.mean, dtype=weight.dtype, device=weight.device)[:, None, None]
        std = torch.tensor(self.std, dtype=weight.dtype, device=weight.device)[:, None, None]
        pixels = (frames.to(weight.device, weight.dtype) - mean) / std
        summary, feature_map = self.summary_and_map(pixels)
        pooled = F.adaptive_avg_pool2d(feature_map, self.grid)  # [frames, dim, grid, grid]
        tokens = pooled.flatten(2).transpose(1, 2)  # [frames, grid^2, dim]
        return torch.cat([summary[:, None], tokens], dim=1) if self.cls else tokens


class EfficientNetLiteTower(VisionTower):
    mean = (127.0, 127.0, 127.0)
    std = (128.0, 128.0, 128.0)

    def summary_and_map(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        feature_map = self.backbone(pixels)
        return feature_map.mean((2, 3)), feature_map


class SiglipTower(VisionTower):
    mean = (127.5, 127.5, 127.5)
    std = (127.5, 127.5, 127.5)

    def summary_and_map(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        out = self.backbone(pixel_values=pixels)
        return out.pooler_output, _as_map(out.last_hidden_state)


class ClipTower(VisionTower):
    mean = (122.7709, 116.7460, 104.0937)
    std = (68.5005, 66.6322, 70.3232)

    def summary_and_map(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        out = self.backbone(pixel_values=pixels)
        return out.last_hidden_state[:, 0], _as_map(out.last_hidden_state[:, 1:])


TOWERS: dict[str, type[VisionTower]] = {
    EfficientNetLiteConfig.model_type: EfficientNetLiteTower,
    "siglip_vision_model": SiglipTower,
    "clip_vision_model": ClipTower,
}


def build_tower(config: PreTrainedConfig, cls: bool, grid: int) -> VisionTower:
    """The tower for a vision configuration; ValueError for a kind that has none."""
    if config.model_type not in TOWERS:
        raise ValueError(f"no vision tower for {config.model_type!r}; known are {', '.join(sorted(TOWERS))}")
    return TOWERS[config.model_type](config, cls, grid)


def _as_map(patches: Tensor) -> Tensor:
    """Patch features in rows [frames, side^2, dim] to a map [frames, dim, side, side]."""
    side = int(patches.shape[1] ** 0.5)
    return patches.transpose(1, 2).unflatten(2, (side, side))
