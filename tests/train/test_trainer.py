"""Training learns the same in rows, in processes, with checkpoints, and when it is stopped and goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from small_trainer import GROUPS, noise, small_trainer, weights
from torch import Tensor

from train import trainer
from train.pocket import export
from train.sequences import Sequence, pack
from train.trainer import Stage, Trainer
from videollm import VideoLLM, VideoLLMConfig, bases
from videollm.checkpoints import build
from videollm.configuration import ConnectorConfig


@pytest.fixture(autouse=True)
def full_precision(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """To be compared to the last digits; `accelerate` holds one precision a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setattr(trainer, "mixed_precision", lambda: "no")
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def two_steps(of: Trainer) -> list[float]:
    return [of.step(noise(np.random.default_rng(seed)))[0] for seed in range(2)]


def check_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, atol=2e-5, rtol=0, msg=name)


@pytest.mark.parametrize("router", ["top_k", "p_mod", "random"])
@pytest.mark.parametrize("rows", [2, 3, 5])
def test_a_step_in_many_rows_is_a_step_in_one(tmp_path: Path, router: str, rows: int) -> None:
    """Five rows are more than there are sequences. (The threshold's loss is of each row's frames.)"""
    whole, dealt = small_trainer(tmp_path, router), small_trainer(tmp_path, router, accumulate=rows)
    before = weights(whole)
    assert two_steps(dealt) == pytest.approx(two_steps(whole), abs=1e-5)
    check_equal(weights(dealt), weights(whole))
    assert any(not torch.equal(before[name], weight) for name, weight in weights(whole).items())


@pytest.mark.parametrize("router", ["top_k", "threshold", "p_mod"])
def test_checkpointing_changes_nothing(tmp_path: Path, router: str) -> None:
    plain, again = small_trainer(tmp_path, router), small_trainer(tmp_path, router, checkpointing=True)
    runs = 0

    def count(*_: object) -> None:
        nonlocal runs
        runs += 1

    for layer in again.model.model.layers:
        layer = getattr(layer, "block", layer)
        layer.self_attn.register_forward_hook(count)
    assert two_steps(again) == pytest.approx(two_steps(plain), abs=1e-6)
    assert runs == 2 * 2 * len(again.model.model.layers), "every layer is run twice a step"
    check_equal(weights(again), weights(plain))


def test_evaluation_learns_nothing_and_is_the_loss_of_training(tmp_path: Path) -> None:
    of, sequences = small_trainer(tmp_path), noise(np.random.default_rng(0))
    before, loss = weights(of), of.loss(sequences)
    assert all(torch.equal(before[name], weight) for name, weight in weights(of).items())
    assert of.step(sequences)[0] == pytest.approx(loss, abs=1e-5)


def test_a_stopped_stage_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "SAVE_EVERY", 2)
    (tmp_path / "whole").mkdir()
    (tmp_path / "stopped").mkdir()
    drawn = 0

    def draw_until_stopped(rng: np.random.Generator) -> list[Sequence]:
        nonlocal drawn
        drawn += 1
        if drawn == 4:
            raise KeyboardInterrupt
        return noise(rng)

    whole = small_trainer(tmp_path / "whole")
    whole.run(Stage("naming", 5, noise))
    with pytest.raises(KeyboardInterrupt):
        small_trainer(tmp_path / "stopped").run(Stage("naming", 5, draw_until_stopped))
    resumed, drawn = small_trainer(tmp_path / "stopped"), 4
    resumed.run(Stage("naming", 5, draw_until_stopped))
    assert drawn == 7, "the step after the last one kept is drawn again"
    check_equal(weights(resumed), weights(whole))
    # A stage that is through is taken from the disk; the next one begins with it and with fresh moments.
    again = small_trainer(tmp_path / "stopped")
    again.run(Stage("naming", 5, draw_until_stopped))
    check_equal(weights(again), weights(whole))
    for of in (whole, again):
        of.run(Stage("clips", 2, noise))
    check_equal(weights(again), weights(whole))


def test_what_another_model_kept_is_refused(tmp_path: Path) -> None:
    small_trainer(tmp_path, "random").run(Stage("naming", 1, noise))
    with pytest.raises(ValueError, match="another model"):
        small_trainer(tmp_path, "top_k").run(Stage("naming", 1, noise))


@pytest.mark.slow
def test_what_is_exported_loads_as_it_was_trained(tmp_path: Path) -> None:
    """On the real base model, in half precision; a model card that lies there stays."""
    config = VideoLLMConfig(
        language_model_name=bases.SMOLLM2,
        vision_name=bases.EFFICIENTNET_LITE0,
        connector_config=ConnectorConfig(kind="class_names", groups=GROUPS),
    )
    torch.manual_seed(0)
    of = Trainer(build(config), tmp_path, seed=0)
    sequences = noise(np.random.default_rng(0), 2, frame=of.model.config.frame_token_id)
    of.step(sequences)
    (tmp_path / "README.md").write_text("the card")
    export(of.model, of.adapted, tmp_path)
    assert (tmp_path / "README.md").read_text() == "the card"
    loaded = VideoLLM.from_pretrained(tmp_path)
    row = pack(sequences, torch.device("cpu"))
    with torch.no_grad():
        for weight in of.objective.parameters():
            if weight.requires_grad:
                weight.copy_(weight.half())
        trained = of.adapted.merge_and_unload()
        expected, found = (
            model(
                row.ids, frame_embeds=model.connector.speak(row.pictures), sequence_lengths=row.lengths
            ).logits
            for model in (trained, loaded)
        )
    torch.testing.assert_close(found.softmax(-1), expected.softmax(-1), atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(("sharded", "kind"), [(False, "DistributedDataParallel"), (True, "FSDPObjective")])
@pytest.mark.parametrize("router", ["top_k", "threshold"])
def test_two_processes_learn_what_one_does(tmp_path: Path, sharded: bool, kind: str, router: str) -> None:
    """Their rows hold different numbers of frames, and keep different numbers of tokens."""
    alone = small_trainer(tmp_path, router, accumulate=2)
    losses = two_steps(alone)

    here, root = Path(__file__).parent, Path(__file__).parents[2]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2"]
    command += ["--main_process_port", "0", "--mixed_precision", "no"]
    if sharded:
        command += ["--config_file", str(root / "train" / "configs" / "fsdp.yaml")]
    else:
        command += ["--multi_gpu"]
    out = tmp_path / "out.pt"
    done = subprocess.run(
        [*command, str(here / "small_trainer.py"), router, str(out)],
        env=os.environ | {"PYTHONPATH": f"{here.parent}:{root}", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    together = torch.load(out)
    assert together["kind"] == kind
    assert together["losses"] == pytest.approx(losses, abs=1e-5)
    check_equal(together["weights"], weights(alone))
