"""What lmms-eval finds of this project: its entry point in the group "lmms_eval.models".

python -m lmms_eval --model videollm --model_args pretrained=pocket --tasks TASKS --force_simple
"""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """The model's name there, and its class."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(
        model_id="videollm", simple_class_path="train.evaluation.lmms_model.VideoLLMForLmmsEval"
    )
