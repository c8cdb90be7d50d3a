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


def prepare_for_inference(model: VideoLLM) -> VideoLLM:
    """On the CPU: the decoder in fewer calls and in int8, and a convolutional vision tower through OpenVINO
    where that is installed. In place, and not to be trained or saved afterwards. Elsewhere the model stays as
    it is."""
    if model.device.type != "cpu":
        return model
    tower = model.vision_tower
    if isinstance(tower.backbone, EfficientNetLite):
        with suppress(ImportError):  # an optional package: PyTorch does the same, slower
            tower.backbone = OpenVINOBackbone(tower.backbone, tower.size)
    fuse(model.model)
    return quantize_linears(model)
