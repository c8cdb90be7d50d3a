"""A new training that begins with what an earlier one learned."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from small_trainer import small_training

from train.pocket import earlier_model, learned_weights
from videollm import checkpoints
from videollm.bases import CheckpointError


def shifted(work: Path) -> PeftModel:
    """A small adapted model whose learned weights are none that another begins with."""
    adapted = small_training(work).adapted
    with torch.no_grad():
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight.add_(1)
    return adapted


def test_all_that_was_learned_is_taken_over_but_for_the_classifier(tmp_path: Path) -> None:
    earlier, adapted = shifted(tmp_path), small_training(tmp_path).adapted
    theirs, began = earlier.state_dict(), {name: w.clone() for name, w in adapted.state_dict().items()}
    adapted.load_state_dict(learned_weights(earlier), strict=False)
    learned = {name for name, weight in adapted.named_parameters() if weight.requires_grad}
    for name, weight in adapted.state_dict().items():
        expected = theirs if name in learned and "classifier" not in name else began
        assert torch.equal(weight, expected[name]), name


def test_a_model_of_other_names_is_refused_before_any_work(tmp_path: Path) -> None:
    pocket = checkpoints.assets_folder() / "pocket"
    shutil.copytree(pocket, tmp_path / "model")
    settings = json.loads((pocket / "config.json").read_text())
    settings["connector_config"]["labels"][0] = "something else"
    (tmp_path / "model" / "config.json").write_text(json.dumps(settings))
    assert earlier_model(str(pocket)).peft_config
    with pytest.raises(CheckpointError, match="other names"):
        earlier_model(str(tmp_path / "model"))
