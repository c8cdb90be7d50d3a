"""Vision towers and connectors behind their interfaces."""

from __future__ import annotations

import numpy as np
import pytest
import skimage.data
import torch
from conftest import vision_config
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig

from stream.sources.square import pad_to_square
from train.material import class_names
from videollm import bases
from videollm.configuration import ConnectorConfig
from videollm.connector import ClassNameConnector, GroupedClassifier, MLPConnector, build_connector
from videollm.efficientnet_lite import EfficientNetLite, EfficientNetLiteConfig
from videollm.vision import build_tower


def clip_config() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
    )


@pytest.mark.parametrize("config", [vision_config(), clip_config(), EfficientNetLiteConfig(image_size=64)])
@pytest.mark.parametrize(("cls", "grid"), [(True, 3), (False, 3), (True, 1)])
@torch.inference_mode()
def test_a_frame_becomes_its_tokens(config: object, cls: bool, grid: int) -> None:
    tower = build_tower(config, cls, grid).eval()
    frames = torch.randint(0, 256, (2, 3, tower.size, tower.size), dtype=torch.uint8)
    tokens = tower(frames)
    assert tokens.shape == (2, cls + grid**2, config.hidden_size)
    torch.testing.assert_close(tower(frames[1:])[0], tokens[1], atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_clip_tokens_are_the_models_own() -> None:
    tower = build_tower(clip_config(), cls=True, grid=4).eval()
    frames = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    mean, std = (torch.tensor(values)[:, None, None] for values in (tower.mean, tower.std))
    reference: CLIPVisionModel = tower.backbone
    expected = reference(pixel_values=(frames.float() - mean) / std).last_hidden_state
    torch.testing.assert_close(tower(frames), expected, atol=1e-5, rtol=1e-5)


def test_a_wrong_size_and_an_unknown_tower_are_refused() -> None:
    with pytest.raises(ValueError, match="32x32"):
        build_tower(vision_config(), True, 3)(torch.zeros(1, 3, 30, 32, dtype=torch.uint8))
    with pytest.raises(ValueError, match="no vision tower"):
        build_tower(LlamaConfig(), True, 3)


@torch.inference_mode()
def test_efficientnet_knows_a_cat_and_a_cup_of_coffee() -> None:
    config, weights = bases.vision_backbone(bases.EFFICIENTNET_LITE0, EfficientNetLiteConfig())
    backbone = EfficientNetLite(config).eval()
    backbone.load_state_dict(weights)
    classifier, names = bases.imagenet_classifier(), class_names()
    for picture, word in ((skimage.data.chelsea(), "cat"), (skimage.data.coffee(), "espresso")):
        pixels = torch.from_numpy(pad_to_square(picture, config.image_size)).permute(2, 0, 1)[None]
        logits = classifier(backbone((pixels.float() - 127) / 128).mean((2, 3)))
        assert word in names[int(logits.argmax())]


def named_connector() -> ClassNameConnector:
    """Of 6 features, four classes and three, the last of which is "nothing of these"."""
    connector = build_connector(ConnectorConfig(kind="class_names", groups=[4, 3]), 6, 5, places=10)
    assert isinstance(connector, ClassNameConnector)
    return connector


def test_the_connector_speaks_the_names_of_what_it_sees() -> None:
    torch.manual_seed(0)
    connector = named_connector()
    features = torch.randn(2, 10, 6)
    shares = connector.shares(connector.classifier(features))
    torch.testing.assert_close(connector(features), F.linear(shares, connector.names.weight))
    sure = torch.zeros(1, 10, 7)
    sure[..., [2, 6]] = 50  # something of the first group, and nothing of the second
    spoken = connector.names.weight[:, [2, 6]].sum(1)
    torch.testing.assert_close(connector.speak(sure)[0, 0], spoken)


def test_a_group_reads_features_to_its_power() -> None:
    torch.manual_seed(0)
    features = torch.randn(2, 10, 6)
    plain = build_connector(ConnectorConfig(kind="class_names", groups=[4, 3]), 6, 5, places=10).classifier
    rooted = GroupedClassifier(6, [4, 3], [1.0, 0.5])
    rooted.load_state_dict(plain.state_dict())
    roots = features.abs().sqrt() * features.sign()
    torch.testing.assert_close(plain(features), F.linear(features, plain.weight, plain.bias))
    expected = torch.cat([plain(features)[..., :4], plain(roots)[..., 4:]], dim=-1)
    torch.testing.assert_close(rooted(features), expected)


@pytest.mark.parametrize(("class_of_last", "open_share"), [(0, 0.0), (2, 1.0)])
def test_the_first_group_speaks_only_where_the_last_one_sees_nothing(
    class_of_last: int, open_share: float
) -> None:
    logits = torch.randn(2, 10, 7)
    logits[..., 4 + class_of_last] = 50
    shares = named_connector().shares(logits)
    torch.testing.assert_close(shares[..., :4].sum(-1), torch.full((2, 10), open_share))
    torch.testing.assert_close(shares[..., 4:].sum(-1), torch.ones(2, 10))


def test_connectors_are_built_by_kind() -> None:
    assert isinstance(build_connector(ConnectorConfig(), 6, 5, places=10), MLPConnector)
    assert build_connector(ConnectorConfig(), 6, 5, places=10)(torch.zeros(1, 10, 6)).shape == (1, 10, 5)
    with pytest.raises(ValueError, match="connector kind"):
        build_connector(ConnectorConfig(kind="magic"), 6, 5, places=10)


def test_padding_keeps_the_aspect() -> None:
    white = np.full((10, 20, 3), 255, np.uint8)
    square = pad_to_square(white, 32)
    assert square.shape == (32, 32, 3)
    assert (square[8:24] == 255).all() and (square[:8] == 0).all() and (square[24:] == 0).all()
