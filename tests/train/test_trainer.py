"""Training learns the same in rows, in processes, with checkpoints, and when it is stopped and goes on."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small_trainer import GROUPS, looks, losses, noise, small_training, weights
from torch import Tensor

from train.export import export
from train.objective import adapt, trained_connector
from train.sequences import Sequence, pack
from train.trainer import DrawnStage, Settings, Training, TrainingError
from videollm import VideoLLM, VideoLLMConfig, bases
from videollm.checkpoints import build
from videollm.configuration import ConnectorConfig

TWO_STEPS = DrawnStage("steps", 2, noise)


def check_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, atol=2e-5, rtol=0, msg=name)


@pytest.mark.parametrize("router", ["top_k", "p_mod", "random"])
@pytest.mark.parametrize("rows", [2, 3, 5])
def test_a_step_in_many_rows_is_a_step_in_one(tmp_path: Path, router: str, rows: int) -> None:
    """Five rows are more than there are sequences. (The threshold's loss is of each row's frames.)"""
    whole = small_training(tmp_path / "whole", router)
    dealt = small_training(tmp_path / "dealt", router, accumulate=rows)
    before = weights(whole)
    assert losses(dealt, TWO_STEPS) == pytest.approx(losses(whole, TWO_STEPS), abs=1e-5)
    check_equal(weights(dealt), weights(whole))
    assert any(not torch.equal(before[name], weight) for name, weight in weights(whole).items())


@pytest.mark.parametrize("router", ["top_k", "threshold", "p_mod"])
def test_checkpointing_changes_nothing(tmp_path: Path, router: str) -> None:
    plain = small_training(tmp_path / "plain", router)
    again = small_training(tmp_path / "again", router, checkpointing=True)
    runs = 0

    def count(*_: object) -> None:
        nonlocal runs
        runs += 1

    for layer in again.model.model.layers:
        layer = getattr(layer, "block", layer)
        layer.self_attn.register_forward_hook(count)
    assert losses(again, TWO_STEPS) == pytest.approx(losses(plain, TWO_STEPS), abs=1e-6)
    assert runs == 2 * 2 * len(again.model.model.layers), "every layer is run twice a step"
    check_equal(weights(again), weights(plain))


def test_evaluation_learns_nothing_and_is_the_loss_of_training(tmp_path: Path) -> None:
    of, sequences = small_training(tmp_path), noise(np.random.default_rng(0))
    before, loss = weights(of), of.loss(sequences)
    assert all(torch.equal(before[name], weight) for name, weight in weights(of).items())
    step = DrawnStage("step", 1, lambda rng: sequences)
    assert losses(of, step) == [pytest.approx(loss, abs=1e-5)]


def test_a_stage_of_no_steps_is_passed_over(tmp_path: Path) -> None:
    of = small_training(tmp_path)
    before = weights(of)
    assert of.run(DrawnStage("none", 0, noise)) == []
    assert all(torch.equal(before[name], weight) for name, weight in weights(of).items())


def test_a_stopped_stage_goes_on_where_it_was(tmp_path: Path) -> None:
    """The same losses step by step, the next stage's, too; a half-written checkpoint is passed over."""
    drawn = 0

    def draw_until_stopped(rng: np.random.Generator) -> list[Sequence]:
        nonlocal drawn
        drawn += 1
        if drawn == 5:
            raise KeyboardInterrupt
        return noise(rng)

    stopping = DrawnStage("naming", 6, draw_until_stopped)
    whole = small_training(tmp_path / "whole", save_every=2)
    expected = losses(whole, DrawnStage("naming", 6, noise))
    with pytest.raises(KeyboardInterrupt):
        small_training(tmp_path / "stopped", save_every=2).run(stopping)
    half = tmp_path / "stopped" / "naming" / "checkpoint-4"
    half.mkdir(exist_ok=True)
    for file in half.iterdir():
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    resumed = small_training(tmp_path / "stopped", save_every=2)
    assert losses(resumed, stopping) == pytest.approx(expected, abs=1e-6)
    check_equal(weights(resumed), weights(whole))
    # A stage that is through is taken from the disk; the next one begins with it and with fresh moments.
    before, again = drawn, small_training(tmp_path / "stopped", save_every=2)
    again.run(stopping)
    assert drawn == before
    check_equal(weights(again), weights(whole))
    clips = DrawnStage("clips", 2, noise)
    assert losses(again, clips) == pytest.approx(losses(whole, clips), abs=1e-6)
    check_equal(weights(again), weights(whole))


def test_what_another_model_kept_is_refused(tmp_path: Path) -> None:
    small_training(tmp_path, "random").run(DrawnStage("naming", 1, noise))
    with pytest.raises(ValueError, match="another model"):
        small_training(tmp_path, "top_k").run(DrawnStage("naming", 1, noise))


def test_a_part_without_a_rate_stays_as_it_is(tmp_path: Path) -> None:
    of = small_training(tmp_path)
    before = weights(of)
    of.run(DrawnStage("align", 2, noise, rates={"adapter": 0.0, "connector": 1e-2, "router": 0.0}))
    changed = {name for name, weight in weights(of).items() if not torch.equal(before[name], weight)}
    assert changed and all("connector" in name for name in changed)


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_no_number_stops_before_the_weights_are_spoiled(tmp_path: Path, bad: str) -> None:
    of, steps = small_training(tmp_path, save_every=2), itertools.count(1)

    def spoil(value: torch.Tensor) -> torch.Tensor:
        return value * (np.nan if next(steps) == 4 else 1)

    if bad == "loss":
        of.objective.register_forward_hook(lambda module, inputs, out: (spoil(out[0]), out[1]))
    else:
        connector = trained_connector(of.model)
        connector.places.register_hook(spoil)
    with pytest.raises(TrainingError, match=f"the {bad} of step 4 of naming is nan; .*checkpoint-2 is kept"):
        of.run(DrawnStage("naming", 6, noise))
    assert all(weight.isfinite().all() for weight in weights(of).values())


@pytest.mark.slow
def test_what_is_exported_loads_as_it_was_trained(tmp_path: Path) -> None:
    """On the real base model, in half precision; a model card that lies there stays."""
    config = VideoLLMConfig(
        language_model_name=bases.SMOLLM2,
        vision_name=bases.EFFICIENTNET_LITE0,
        connector_config=ConnectorConfig(kind="class_names", groups=GROUPS),
    )
    torch.manual_seed(0)
    of = Training(adapt(build(config)), Settings(tmp_path), logits=True)
    sequences = noise(np.random.default_rng(0), 2, frame=of.model.config.frame_token_id)
    of.run(DrawnStage("step", 1, lambda rng: sequences))
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
@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("router", ["top_k", "threshold"])
def test_two_processes_learn_what_one_does(tmp_path: Path, sharded: bool, router: str) -> None:
    """Their rows hold different numbers of frames, and keep different numbers of tokens."""
    alone = small_training(tmp_path / "alone", router, accumulate=2)
    expected = [looks(alone, DrawnStage(name, 2, noise)) for name in ("naming", "clips")]

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
    assert together["sharded"] == sharded
    for (found, said), (losses_alone, said_alone) in zip(together["looks"], expected, strict=True):
        assert found == pytest.approx(losses_alone, abs=1e-5)
        assert said == said_alone and "narration" in said[0]
    check_equal(together["weights"], weights(alone))
