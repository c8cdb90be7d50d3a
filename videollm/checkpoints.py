"""One door for every checkpoint: a folder, a hub id, or "pocket".

Two kinds come through it. A whole checkpoint is what `VideoLLM.save_pretrained` writes. An adapter
checkpoint is a PEFT adapter with a trained connector on an unchanged language model: the default model is
one, and so is the public VideoLLM-online checkpoint, which has no configuration of ours and means its
paper's settings.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from peft import PeftConfig, PeftModel
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel

from videollm import bases
from videollm.bases import CheckpointError
from videollm.configuration import DepthConfig, VideoLLMConfig
from videollm.depth import MixtureOfDepthsLayer
from videollm.depth_lm import DepthLM
from videollm.modeling import VideoLLM
from videollm.vision import VisionTower, build_tower

DEFAULT_MODEL = "pocket"
VIDEOLLM_ONLINE_VISION = "google/siglip-large-patch16-384"


def assets_folder() -> Path:
    """Where the default model's own weights and the sample clip lie."""
    return Path(__file__).resolve().parent.parent / "assets"


def load(name_or_path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> VideoLLM:
    """The model of that name, merged and ready to run, with its tokenizer as `model.tokenizer`.

    Further arguments go to `transformers` where the checkpoint is a whole one. Raises CheckpointError.
    """
    folder = _folder(str(name_or_path))
    with _explained(name_or_path):
        if _is_adapter(folder):
            return _load_adapter(folder).eval()
        _check_ours(folder, name_or_path)
        model = super(VideoLLM, VideoLLM).from_pretrained(folder, *args, **kwargs)
        model.tokenizer = AutoTokenizer.from_pretrained(folder)
    return model.eval()


def load_vision_tower(name_or_path: str | os.PathLike[str]) -> tuple[VisionTower, str]:
    """The vision tower alone of what `load` would load, and the name of its weights: the decoder, which may
    be a hundred times larger, is left on disk. Raises CheckpointError."""
    folder = _folder(str(name_or_path))
    with _explained(name_or_path):
        if _is_adapter(folder):
            config = _adapter_config(folder)
            if config.vision_name is None:
                raise CheckpointError(f"{name_or_path} names no vision_name to build on")
            vision_config, weights = bases.vision_backbone(config.vision_name, config.vision_config)
            tower = build_tower(vision_config, config.frame_cls, config.frame_grid)
            tower.backbone.load_state_dict(weights)
            return tower.eval(), config.vision_name
        _check_ours(folder, name_or_path)
        part = VisionPart.from_pretrained(folder)
    return part.vision_tower.eval(), part.config.vision_name or str(name_or_path)


class VisionPart(PreTrainedModel):
    """What a whole checkpoint holds under `vision_tower`."""

    config_class = VideoLLMConfig  # type: ignore[assignment]
    config: VideoLLMConfig
    _keys_to_ignore_on_load_unexpected = [r"^(?!vision_tower\.)"]  # noqa: RUF012 - transformers reads it

    def __init__(self, config: VideoLLMConfig) -> None:
        super().__init__(config)
        self.vision_tower = build_tower(config.vision_config, config.frame_cls, config.frame_grid)
        self.post_init()


def is_video_model(name: str) -> bool:
    """Whether `load` would take a name for a model that sees; CheckpointError for one that is nowhere."""
    if name == bases.SMOLLM2:
        return False
    folder = _folder(name)
    with _explained(name):
        return _is_adapter(folder) or _is_ours(folder)


def build(config: VideoLLMConfig) -> VideoLLM:
    """The model of a configuration on its unchanged parts, `language_model_name` and `vision_name`.

    Connector and routers are new. The configurations of the parts are filled in.
    """
    if config.language_model_name is None or config.vision_name is None:
        raise CheckpointError("the configuration names no language_model_name and vision_name to build on")
    decoder, tokenizer = bases.language_model(config.language_model_name)
    vision_config, vision_weights = bases.vision_backbone(config.vision_name, config.vision_config)
    fields = config.to_dict() | {"text_config": decoder.config, "vision_config": vision_config}
    if config.text_config.vocab_size != decoder.config.vocab_size:
        fields["frame_token_id"] = None
    model = VideoLLM(VideoLLMConfig(**fields))
    model.vision_tower.backbone.load_state_dict(vision_weights)
    adopt(model, decoder)
    model.tokenizer = tokenizer
    return model


def adopt(model: DepthLM, decoder: PreTrainedModel) -> None:
    """Give the model an unconverted decoder's weights, under the wrapped layers' names."""
    for name, module in decoder.model.named_children():
        if name != "layers":
            getattr(model.model, name).load_state_dict(module.state_dict())
    for ours, theirs in zip(model.model.layers, cast(Any, decoder).model.layers, strict=True):
        block = ours.block if isinstance(ours, MixtureOfDepthsLayer) else ours
        block.load_state_dict(theirs.state_dict())
    model.lm_head.load_state_dict(decoder.lm_head.state_dict())
    model.tie_weights()


@contextmanager
def _explained(name: str | os.PathLike[str]) -> Iterator[None]:
    """Whatever can be wrong with a checkpoint's files, as a CheckpointError."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"{name} can't be loaded: {_first_line(error)}") from error


def _is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()


def _check_ours(folder: Path, name: str | os.PathLike[str]) -> None:
    if not _is_ours(folder):
        raise CheckpointError(
            f"{name} is no VideoLLM checkpoint; give one that save_pretrained or training wrote"
        )


def _is_ours(folder: Path) -> bool:
    """Whether a folder's configuration is of our kind; OSError or ValueError for one that can't be read."""
    return PreTrainedConfig.get_config_dict(folder)[0].get("model_type") == VideoLLMConfig.model_type


def load_adapter(name_or_path: str | os.PathLike[str]) -> PeftModel:
    """The adapter checkpoint of that name, not merged, to be trained on. Raises CheckpointError."""
    folder = _folder(str(name_or_path))
    with _explained(name_or_path):
        if not _is_adapter(folder):
            raise CheckpointError(f"{name_or_path} is no adapter checkpoint, as training writes them")
        return PeftModel.from_pretrained(build(_adapter_config(folder)), folder, is_trainable=True)


def _adapter_config(folder: Path) -> VideoLLMConfig:
    if (folder / "config.json").is_file() and _is_ours(folder):
        return VideoLLMConfig.from_pretrained(folder)
    return VideoLLMConfig(
        language_model_name=PeftConfig.from_pretrained(str(folder)).base_model_name_or_path,
        vision_name=VIDEOLLM_ONLINE_VISION,
        depth_config=DepthConfig(layers="none"),
    )


def _load_adapter(folder: Path) -> VideoLLM:
    model = build(_adapter_config(folder))
    tokenizer = model.tokenizer
    merged = PeftModel.from_pretrained(model, folder).merge_and_unload()
    merged.tokenizer = tokenizer
    return merged


def _folder(name: str) -> Path:
    """Where a checkpoint lies on disk, fetched from the hub where it is not a folder."""
    if name == DEFAULT_MODEL:
        return assets_folder() / DEFAULT_MODEL
    if Path(name).is_dir():
        return Path(name)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise CheckpointError(
            f'there is no folder {name}; give a folder, a hub id (owner/name) or "{DEFAULT_MODEL}"'
        )
    try:
        return Path(snapshot_download(name))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{name} is no folder here and can't be fetched from the hub: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
