"""`videollm train`: what a recipe says is trained, whatever stops it, in one process or two."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from conftest import small_model
from small_recipe import FPS, prepare, write_recipe

from stream.frames import Frame
from stream.session import Session
from train.data.annotations import Dialogue, Skipped, Turn
from train.data.dialogues import write_dialogues
from train.data.lessons import Cut, Passes, lessons
from train.data.shards import Shards
from train.kept import kept_shares
from train.narrating import narrate
from train.objective import adapt
from train.recipe import Part, read_recipe
from train.recipe_training import train
from train.sequences import LossWeights
from train.trainer import Settings, Training, last_checkpoint
from videollm import VideoLLM
from videollm.cli import run
from videollm.prompt import Prompt

ROOT = Path(__file__).parents[2]
STEPS = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the base models, the prepared clips, and the recipe of a training that was never stopped."""
    folder = tmp_path_factory.mktemp("recipes")
    write_recipe(folder, "whole")
    return folder


@pytest.fixture(scope="module")
def whole(folder: Path) -> list[dict[str, Any]]:
    """What that training logged."""
    assert run(["train", str(folder / "whole.yaml")]) == 0
    return history(folder / "whole")


def history(out: Path) -> list[dict[str, Any]]:
    checkpoint = last_checkpoint(out / "stages" / "clips")
    assert checkpoint is not None
    return json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]


@pytest.fixture
def model(folder: Path, whole: list[dict[str, Any]]) -> VideoLLM:
    """What it left."""
    return VideoLLM.from_pretrained(folder / "whole" / "model")


@pytest.fixture
def prompt(model: VideoLLM) -> Prompt:
    assert model.tokenizer is not None
    return Prompt.of(model.tokenizer, model.config)


def losses(logged: list[dict[str, Any]]) -> list[float]:
    return [entry["loss"] for entry in logged if "loss" in entry]


def test_the_loss_falls_and_a_model_is_left_that_says_what_it_learned(
    folder: Path, whole: list[dict[str, Any]], model: VideoLLM, prompt: Prompt
) -> None:
    found = losses(whole)
    assert len(found) == STEPS
    assert np.mean(found[-3:]) < 0.7 * np.mean(found[:3])
    held_out = [entry["eval_loss"] for entry in whole if "eval_loss" in entry]
    assert len(held_out) == 2 and held_out[1] < held_out[0] < found[0]
    looks = [entry for entry in whole if "sample" in entry]
    assert len(looks) == 2
    for look in looks:
        assert "clip-3 from 0 s" in look["sample"] and "true    2.0 s  A cat." in look["sample"]
        assert look["kept_layer_1"] == look["kept_layer_3"] == pytest.approx(0.2)
    assert list((folder / "whole" / "stages" / "clips" / "runs").rglob("events.*")), "for TensorBoard"

    learned = lessons([Part(folder / "clips", split="train")], model.config, prompt, Cut(60), Skipped())
    assert model.config.context_tokens == max(lesson.tokens for lesson in learned)
    training = Training(adapt(model), Settings(folder, precision="no"))
    (part,) = read_recipe(folder / "whole.yaml").data.held_out
    held = lessons([part], model.config, prompt, Cut(60), Skipped())
    weights = LossWeights()
    loss = training.loss([lesson.sequence(prompt, weights) for lesson in held])
    assert loss == pytest.approx(held_out[-1], rel=0.02), "in half precision"


def test_packed_sequences_have_the_loss_that_they_have_apart(
    folder: Path, model: VideoLLM, prompt: Prompt
) -> None:
    training = Training(adapt(model), Settings(folder, precision="no"))
    found = lessons([Part(folder / "clips")], model.config, prompt, Cut(3, questions=1), Skipped())
    sequences = [lesson.sequence(prompt, LossWeights(speak=2.0)) for lesson in found[:5]]
    assert len({len(sequence.ids) for sequence in sequences}) > 1
    shares = [sum(sequence.weights) for sequence in sequences]
    apart = np.average([training.loss([sequence]) for sequence in sequences], weights=shares)
    assert training.loss(sequences) == pytest.approx(apart, abs=1e-5)


def test_every_lesson_is_learned_once_a_pass(folder: Path, model: VideoLLM, prompt: Prompt) -> None:
    found = lessons([Part(folder / "clips", split="train")], model.config, prompt, Cut(60), Skipped())
    stage = Passes("clips", 6, found, 3, prompt, LossWeights())
    drawn = [stage._at(index, seed=0).dialogue.video for index in range(18)]
    every = sorted(lesson.dialogue.video for lesson in found)
    assert sorted(drawn[:9]) == sorted(drawn[9:]) == every
    assert drawn[:9] != drawn[9:]


def test_shares_of_a_folder_are_apart_and_together_all_of_it(
    folder: Path, model: VideoLLM, prompt: Prompt
) -> None:
    videos = [
        {
            lesson.dialogue.video
            for lesson in lessons(
                [Part(folder / "clips", share=share)], model.config, prompt, Cut(60), Skipped()
            )
        }
        for share in ((0.0, 0.5), (0.5, 1.0), (0.0, 1.0))
    ]
    assert not videos[0] & videos[1] and videos[0] | videos[1] == videos[2]
    assert len(videos[2]) == 12


def test_dialogues_that_were_written_are_what_is_said(folder: Path, model: VideoLLM, prompt: Prompt) -> None:
    words = (
        Turn(1.5, "assistant", "Something new."),
        Turn(2.0, "user", "What?"),
        Turn(2.0, "assistant", "It."),
    )
    told = [Dialogue("clip-0", 1.0, 3.0, words), Dialogue("clip-99", 0.0, 1.0, ())]
    write_dialogues(folder / "told.jsonl", told)
    part = Part(folder / "clips", dialogues=folder / "told.jsonl")
    (lesson,) = lessons([part], model.config, prompt, Cut(60), Skipped())
    assert lesson.dialogue == told[0] and lesson.frames == range(2, 7)


def test_long_streams_are_cut_and_nothing_said_is_lost(folder: Path, model: VideoLLM, prompt: Prompt) -> None:
    skipped = Skipped()
    parts = lessons([Part(folder / "clips")], model.config, prompt, Cut(1.5), skipped)
    told = sum(len(lesson.dialogue.turns) for lesson in parts)
    assert told == 12 and not skipped.counts
    sequences = [lesson.sequence(prompt, LossWeights()) for lesson in parts]
    shown = [picture.tobytes() for sequence in sequences for picture in sequence.pictures]
    assert len(shown) == len({*shown}), "no frame is learned twice"
    assert sum(sequence.targets.count(prompt.eos) for sequence in sequences) == 12
    model.config.text_config.max_position_embeddings = 30
    with pytest.raises(ValueError, match="12 x dialogue of more than the 30 tokens"):
        lessons([Part(folder / "clips")], model.config, prompt, Cut(60), Skipped())


def test_a_finished_training_is_left_as_it_is_and_another_recipe_is_refused(
    folder: Path, whole: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    before = (folder / "whole" / "model" / "adapter_model.safetensors").read_bytes()
    assert run(["train", str(folder / "whole.yaml")]) == 0
    assert (folder / "whole" / "model" / "adapter_model.safetensors").read_bytes() == before
    other = write_recipe(folder, "whole", seed=1)
    try:
        assert run(["train", str(other)]) == 1
    finally:
        write_recipe(folder, "whole")
    assert "holds the training of another recipe" in capsys.readouterr().err


def test_a_trained_model_goes_on_from_its_name(folder: Path, whole: list[dict[str, Any]]) -> None:
    recipe = write_recipe(folder, "further", model=str(folder / "whole" / "model"))
    train(read_recipe(recipe))
    assert losses(history(folder / "further"))[0] < 0.5 * losses(whole)[0]


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"optimizer": "sgd"}, "unknown field `optimizer`"),
        ({"stages": [{"name": "clips", "epoch": 1}]}, r"unknown field `epoch` - at `\$.stages\[0\]`"),
        ({"stages": []}, r"length >= 1 - at `\$.stages`"),
        ({"stages": [{"name": "a"}, {"name": "a"}]}, "two stages have one name"),
        ({"model": {"language_model": "x"}}, "missing required field `vision`"),
        ({"model": {"language_model": "x", "vision": "y", "depth": {"router": "best"}}}, "no router 'best'"),
        (
            {"model": {"language_model": "x", "vision": "y", "depth": {"ratio": 2}}},
            r"ratio .* at `\$.model.depth`",
        ),
        ({"data": {"train": [{"folder": "nowhere"}]}}, "nowhere holds nothing prepared"),
        ({"loss": {"speak": -1}}, r"at `\$.loss.speak`"),
        ({"precision": "fp8"}, "Invalid enum value 'fp8'"),
    ],
)
def test_a_recipe_that_is_wrong_is_told_in_one_line(
    folder: Path, changed: dict[str, Any], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(folder, "wrong", **changed)
    assert run(["train", str(recipe)]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("videollm:")]
    assert re.search(complaint, line), line
    assert not (folder / "wrong").exists(), "a mended recipe is not another one"


def test_a_recipe_that_is_none_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", str(tmp_path / "none.yaml")]) == 1
    (tmp_path / "torn.yaml").write_text("out: [")
    assert run(["train", str(tmp_path / "torn.yaml")]) == 1
    none, torn = capsys.readouterr().err.splitlines()
    assert "No such file" in none and "torn.yaml" in torn


def test_data_of_another_tower_or_split_is_refused(folder: Path, tmp_path: Path) -> None:
    prepare(tmp_path / "other", Path("another-tower"), videos=2)
    for data, complaint in (
        ({"folder": str(tmp_path / "other")}, "prepared with another-tower at 32 pixels"),
        ({"folder": str(folder / "clips"), "split": "test"}, "its splits are: train, val"),
    ):
        recipe = write_recipe(folder, "refused", data={"train": [data]})
        with pytest.raises(ValueError, match=complaint):
            train(read_recipe(recipe))


def test_features_that_are_no_numbers_stop_training(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoiled = write_recipe(folder, "spoiled")
    features = Shards.features

    def spoil(self: Shards, video: str, *frames: int) -> np.ndarray:
        found = features(self, video, *frames)
        return np.full_like(found, np.nan) if video == "clip-4" else found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Shards, "features", spoil)
        assert run(["train", str(spoiled)]) == 1
    assert "of clips is nan" in capsys.readouterr().err
    assert not (folder / "spoiled" / "model").exists()


def test_a_look_at_features_says_what_a_session_says_of_the_frames() -> None:
    model = small_model()
    frames = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
    features = model.vision_tower(torch.from_numpy(frames).permute(0, 3, 1, 2))
    assert model.tokenizer is not None
    prompt = Prompt.of(model.tokenizer, model.config)
    model.config.threshold = 0.0032  # a random model's probability of one token of 300 lies about there
    said = narrate(model, prompt, features.detach(), FPS)
    session = Session(model)
    heard = [event for at, pixels in enumerate(frames) for event in session.step(Frame(at / FPS, pixels))]
    assert said == heard
    assert 0 < len(said) < 6


@pytest.mark.parametrize(("router", "share"), [("top_k", 0.3), ("full", None), ("threshold", None)])
def test_kept_shares_are_counted_by_layer(router: str, share: float | None) -> None:
    model = small_model(router=router, ratio=0.3)
    frames = torch.randn(3, 10, 64)
    with kept_shares(model) as kept, torch.no_grad():
        model(torch.tensor([[*[300] * 30]]), frame_embeds=frames)
    by_layer = kept.by_layer()
    if share is not None:
        assert by_layer == {1: pytest.approx(share), 3: pytest.approx(share)}
    assert all(0 < kept_share <= 1 for kept_share in by_layer.values())
    with torch.no_grad():
        model(torch.tensor([[*[300] * 30]]), frame_embeds=frames)
    assert kept.by_layer() == by_layer, "the hooks are gone"


@pytest.mark.parametrize("name", ["videollm-mod-8b", "pocket-clips"])
def test_the_recipes_that_come_along_are_right(name: str) -> None:
    recipe = read_recipe(ROOT / "train" / "recipes" / f"{name}.yaml")
    assert recipe.out == Path("runs") / name


@pytest.mark.parametrize("name", ["fsdp", "deepspeed"])
def test_accelerate_reads_its_configurations(name: str) -> None:
    config = load_config_from_file(str(ROOT / "train" / "configs" / f"{name}.yaml"))
    assert config.distributed_type == name.upper() and config.mixed_precision == "bf16"


def command(recipe: Path, *launcher: str) -> list[str]:
    return [sys.executable, *launcher, "-m", "videollm.cli", "train", str(recipe)]


@pytest.mark.slow
def test_killed_at_any_step_it_goes_on_as_if_it_had_not_been(
    folder: Path, whole: list[dict[str, Any]]
) -> None:
    recipe = write_recipe(folder, "killed")
    at = random.randint(2, STEPS - 1)
    with subprocess.Popen(command(recipe), stdout=subprocess.PIPE, text=True, cwd=ROOT) as killed:
        assert killed.stdout is not None
        for line in killed.stdout:
            if line.startswith(f"clips {at}/"):
                os.kill(killed.pid, signal.SIGKILL)
                break
    assert killed.returncode == -signal.SIGKILL
    train(read_recipe(recipe))
    assert losses(history(folder / "killed")) == pytest.approx(losses(whole), abs=1e-5), f"killed at {at}"


@pytest.mark.slow
def test_two_processes_learn_what_one_does(folder: Path, whole: list[dict[str, Any]]) -> None:
    recipe = write_recipe(folder, "two")
    launcher = ["-m", "accelerate.commands.launch", "--num_processes", "2", "--multi_gpu"]
    launcher += ["--main_process_port", "0", "--mixed_precision", "no"]
    done = subprocess.run(
        command(recipe, *launcher),
        env=os.environ | {"PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = losses(history(folder / "two"))
    # Rounding decides later which of two equal tokens is kept, and the paths part.
    assert found[:6] == pytest.approx(losses(whole)[:6], abs=1e-4)
    assert np.mean(found[-3:]) == pytest.approx(np.mean(losses(whole)[-3:]), rel=0.3)
    assert VideoLLM.from_pretrained(folder / "two" / "model").config.context_tokens
