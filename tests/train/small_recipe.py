"""A small base model, a small prepared folder, and a recipe for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from conftest import byte_tokenizer, text_config, vision_config
from transformers import AutoModelForCausalLM, SiglipVisionModel

from train.data.annotations import AnnotatedVideo, Segment
from train.data.shards import Encoding, ShardWriter, VideoFeatures, write_shard

THINGS = ("cat", "owl", "cup")
FRAMES = 8
FPS = 2.0


def bases(folder: Path) -> tuple[Path, Path]:
    """A language model with its tokenizer, and a vision tower."""
    torch.manual_seed(0)
    language, vision = folder / "language", folder / "vision"
    model = AutoModelForCausalLM.from_config(text_config(tie_word_embeddings=True))
    with torch.no_grad():
        model.get_input_embeddings().weight *= 10  # far enough apart to be told apart
    model.save_pretrained(language)
    byte_tokenizer().save_pretrained(language)
    SiglipVisionModel(vision_config()).save_pretrained(vision)
    return language, vision


def prepare(folder: Path, vision: Path, videos: int = 12) -> None:
    """Clips of four seconds in which one thing appears; every fourth one is held out. A thing's frames look
    alike, with noise."""
    rng = np.random.default_rng(0)
    looks = rng.standard_normal((len(THINGS) + 1, 10, 32))
    annotation, features = [], {}
    for number in range(videos):
        name, thing, at = f"clip-{number}", number % len(THINGS), 1 + number % 5
        shown = looks[[len(THINGS)] * at + [thing] * (FRAMES - at)]
        frames = (shown + 0.1 * rng.standard_normal(shown.shape)).astype(np.float16)
        features[name] = VideoFeatures(frames, np.arange(FRAMES) / FPS, FRAMES / FPS)
        split = "val" if number % 4 == 3 else "train"
        annotation.append(
            AnnotatedVideo(name, (Segment(at / FPS, f"A {THINGS[thing]}."),), FRAMES / FPS, split)
        )
    with ShardWriter(folder, Encoding(str(vision), 32, FPS), annotation) as writer:
        writer.add(write_shard(writer.new_path(), features))


def write_recipe(folder: Path, out: str = "out", **changed: Any) -> Path:
    """A recipe for what lies in the folder, which is made where it is not there yet."""
    language, vision = folder / "language", folder / "vision"
    if not language.is_dir():
        bases(folder)
        prepare(folder / "clips", vision)
    rates = {"adapter": 2e-2, "connector": 2e-2, "router": 2e-2}
    recipe = {
        "out": str(folder / out),
        "model": {
            "language_model": str(language),
            "vision": str(vision),
            "system_prompt": "Watch.",
            "rank": 4,
        },
        "data": {
            "train": [{"folder": str(folder / "clips"), "split": "train"}],
            "held_out": [{"folder": str(folder / "clips"), "split": "val"}],
        },
        "stages": [{"name": "clips", "epochs": 8, "sequences": 3, "rates": rates}],
        "precision": "float32",
        "save_every": 10,
        "log_every": 1,
        "evaluate_every": 12,
        "samples": 1,
    } | changed
    path = folder / f"{out}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path
