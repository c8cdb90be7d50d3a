"""What a frame shows, small enough to be kept for hours and compared with a question."""

from __future__ import annotations

import re
import zlib
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from videollm.connector import ClassNameConnector

if TYPE_CHECKING:
    from videollm.modeling import VideoLLM

FULL = 127  # of int8: a share of 1
LEAST = 6  # a class that fills less of every place counts as not seen: noise, most of a signature otherwise
KIND_OF = 0.8  # how well "cat" asks for a tiger cat, where a cat is 1


@torch.inference_mode()
def frame_signatures(model: VideoLLM, frames: Tensor) -> np.ndarray:
    """Square frames, uint8 [frames, 3, size, size], to int8 [frames, classes].

    Of a connector that speaks through names: how much of each class is seen at the place that shows most of
    it, 0 or `LEAST` to `FULL`. Others have no classes: [frames, 0].
    """
    connector = model.connector
    if not isinstance(connector, ClassNameConnector):
        return np.zeros((len(frames), 0), np.int8)
    shares = connector.shares(connector.classifier(model.vision_tower(frames)))  # [frames, places, classes]
    most = (shares.amax(1) * FULL).round().to(torch.int8)
    return most.masked_fill(most < LEAST, 0).cpu().numpy()


def question_signature(model: VideoLLM, question: str) -> np.ndarray | None:
    """How well each class answers to the names in a question, float32 [classes]: 1 for its name, `KIND_OF`
    for its name's last word alone, else 0. None where no class does."""
    text = f" {' '.join(_words(question))} "
    weights = np.zeros(len(model.config.connector_config.labels), np.float32)
    for index, label in enumerate(model.config.connector_config.labels):
        words = _words(label)
        if f" {' '.join(words)} " in text:
            weights[index] = 1.0
        elif f" {words[-1]} " in text:
            weights[index] = KIND_OF
    return weights if weights.any() else None


def signature_space(model: VideoLLM) -> int:
    """Which classes a model's signatures count: those of another number can't be compared with them."""
    return zlib.crc32("\n".join(model.config.connector_config.labels).encode())


def _words(text: str) -> list[str]:
    """Lower case, plurals as one of the thing."""
    return [re.sub(r"(?<=[^s])s$", "", word) for word in re.findall(r"[\w'-]+", text.lower())]
