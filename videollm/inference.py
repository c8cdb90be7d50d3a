"""Makes a loaded model as fast as its device allows."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from videollm.efficientnet_lite import EfficientNetLite
from videollm.fused import fuse
from videollm.openvino import OpenVINOBackbone
from videollm.quantized import quantize_linears

if TYPE_CHECKING:
    from videollm.modeling import VideoLLM
    from videollm.vision import VisionTower


def prepare_for_inference(model: VideoLLM) -> VideoLLM:
    """On the CPU: the decoder in fewer calls and in int8, and a convolutional vision tower through OpenVINO
    where that is installed. In place, and not to be trained or saved afterwards. Elsewhere the model stays as
    it is."""
    if model.device.type != "cpu":
        return model
    prepare_tower(model.vision_tower)
    fuse(model.model)
    return quantize_linears(model)


def prepare_tower(tower: VisionTower) -> VisionTower:
    """A convolutional vision tower on the CPU through OpenVINO, in float32; another one as it is."""
    if isinstance(tower.backbone, EfficientNetLite) and next(tower.parameters()).device.type == "cpu":
        with suppress(ImportError):  # an optional package: PyTorch does the same, slower
            tower.backbone = OpenVINOBackbone(tower.backbone, tower.size)
    return tower
