"""A model made fast says nearly the same: OpenVINO's features are PyTorch's, int8 is near float32."""

from __future__ import annotations

import sys

import pytest
import torch
from conftest import small_model
from torch import nn

from videollm.efficientnet_lite import EfficientNetLite, EfficientNetLiteConfig
from videollm.inference import prepare_for_inference
from videollm.openvino import OpenVINOBackbone
from videollm.quantized import Int8Linear
from videollm.vision import EfficientNetLiteTower


@torch.inference_mode()
def test_openvino_sees_what_pytorch_sees_in_any_number_of_frames() -> None:
    pytest.importorskip("openvino")
    torch.manual_seed(0)
    tower = EfficientNetLiteTower(EfficientNetLiteConfig(image_size=64), cls=True, grid=3).eval()
    frames = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    expected = tower(frames)
    tower.backbone = OpenVINOBackbone(tower.backbone, 64)
    scale = expected.abs().max().item()
    torch.testing.assert_close(tower(frames), expected, atol=1e-4 * scale, rtol=1e-4)
    torch.testing.assert_close(tower(frames[1:2]), expected[1:2], atol=1e-4 * scale, rtol=1e-4)


@pytest.mark.parametrize("rows", [1, 11])
@torch.inference_mode()
def test_an_int8_layer_is_near_its_float_layer(rows: int) -> None:
    torch.manual_seed(0)
    exact = nn.Linear(192, 96, bias=rows == 1)
    x = torch.randn(2, rows, 192)
    got, expected = Int8Linear(exact)(x), exact(x)
    assert got.shape == expected.shape
    assert (got - expected).norm() < 0.03 * expected.norm()


def test_an_int8_layer_of_nothing_but_zeros_is_zero() -> None:
    layer = nn.Linear(8, 4, bias=False)
    nn.init.zeros_(layer.weight)
    assert not Int8Linear(layer)(torch.randn(3, 8)).any()


def test_other_towers_stay_as_they_are() -> None:
    model = small_model()
    backbone = model.vision_tower.backbone
    assert prepare_for_inference(model).vision_tower.backbone is backbone
    assert isinstance(model.lm_head, Int8Linear)


def test_without_openvino_pytorch_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)  # as if it were not installed
    model = small_model()
    model.vision_tower = EfficientNetLiteTower(EfficientNetLiteConfig(image_size=64), cls=True, grid=3).eval()
    prepare_for_inference(model)
    assert type(model.vision_tower.backbone) is EfficientNetLite
