"""Trains what a recipe says: `videollm train`."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import cast

import torch
from accelerate import PartialState
from peft import PeftModel
from rich.console import Console

from train.data.annotations import Skipped
from train.data.lessons import Cut, Lesson, Passes, lessons
from train.export import export
from train.narrating import narrate
from train.objective import adapt
from train.precision import mixed_precision
from train.recipe import NewModel, Part, Recipe
from train.trainer import HeldOut, Settings, Training
from videollm.checkpoints import build, load_adapter
from videollm.configuration import VideoLLMConfig
from videollm.files import write_whole
from videollm.modeling import VideoLLM
from videollm.prompt import Prompt

KEPT_RECIPE = "recipe.json"
PRECISIONS = {"float32": "no", "bf16": "bf16"}  # as accelerate calls them
HELD_OUT_LESSONS = 100  # at most, evenly chosen

console = Console()


def train(recipe: Recipe) -> Path:
    """Train, from where it was left, and give the folder of the model, an adapter checkpoint.

    Raises ValueError, ShardError, CheckpointError and TrainingError, each with one line for people.
    """
    # The first to ask says whether processes that are launched on a CPU know of each other.
    PartialState(cpu=not torch.cuda.is_available())
    _check_out(recipe)
    torch.manual_seed(recipe.seed)  # every process begins with the same weights
    adapted = _model(recipe.model)
    settings = Settings(
        work=recipe.out / "stages",
        seed=recipe.seed,
        accumulate=recipe.accumulate,
        checkpointing=recipe.checkpointing,
        precision=PRECISIONS.get(recipe.precision) or mixed_precision(),
        save_every=recipe.save_every,
        log_every=recipe.log_every,
        report_to=("tensorboard",) if find_spec("tensorboard") else (),
    )
    training = Training(adapted, settings)
    config, prompt = training.model.config, training.prompt
    learned = _lessons(recipe.data.train, recipe, config, prompt)
    held_out = None
    if recipe.data.held_out:
        held_out = _held_out(_lessons(recipe.data.held_out, recipe, config, prompt), recipe, training)
    config.context_tokens = max(config.context_tokens or 0, *(lesson.tokens for lesson in learned))
    if PartialState().is_main_process:
        recipe.out.mkdir(parents=True, exist_ok=True)
        write_whole(recipe.out / KEPT_RECIPE, recipe.learned())
    for stage in recipe.stages:
        steps = stage.steps(len(learned))
        training.run(
            Passes(
                stage.name,
                steps,
                learned,
                stage.sequences,
                prompt,
                recipe.loss,
                rates=stage.rates.by_part(),
                warm_up=round(stage.warm_up * steps),
            ),
            held_out,
        )
    return _export(training, recipe.out / "model")


def _check_out(recipe: Recipe) -> None:
    """ValueError where another recipe's training lies in the folder."""
    path = recipe.out / KEPT_RECIPE
    if path.is_file() and path.read_bytes() != recipe.learned():
        raise ValueError(f"{recipe.out} holds the training of another recipe; give another folder as out")


def _model(model: str | NewModel) -> PeftModel:
    if isinstance(model, str):
        adapted = load_adapter(model)
        # What is prepared doesn't tell of cuts.
        cast(VideoLLM, adapted.get_base_model()).config.cut_marker = ""
        return adapted
    config = VideoLLMConfig(
        language_model_name=model.language_model,
        vision_name=model.vision,
        depth_config=model.depth.config(),
        system_prompt=model.system_prompt,
        fps=model.fps,
    )
    built = build(config).to(getattr(torch, model.dtype))
    adapted = adapt(built, model.rank, model.alpha)
    for weight in adapted.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()
    return adapted


def _lessons(parts: list[Part], recipe: Recipe, config: VideoLLMConfig, prompt: Prompt) -> list[Lesson]:
    skipped = Skipped()
    cut = Cut(recipe.data.seconds, recipe.data.questions, recipe.seed)
    found = lessons(parts, config, prompt, cut, skipped)
    if skipped.counts and PartialState().is_main_process:
        console.print(f"left out: {skipped}", markup=False)
    return found


def _held_out(found: list[Lesson], recipe: Recipe, training: Training) -> HeldOut:
    chosen = found[:: -(-len(found) // HELD_OUT_LESSONS)]
    model, prompt = training.model, training.prompt

    def sample() -> str:
        told = []
        for lesson in chosen[: recipe.samples]:
            start, fps = lesson.dialogue.start, lesson.shards.fps
            features = torch.from_numpy(lesson.features()).float().to(model.device)
            said = [(start + event.time, event.text) for event in narrate(model, prompt, features, fps)]
            true = [(turn.time, turn.text) for turn in lesson.dialogue.turns]
            told.append(f"{lesson.dialogue.video} from {start:g} s")
            for name, texts in (("true", true), ("said", said)):
                told += [f"  {name} {time:6.1f} s  {text}" for time, text in texts]
        return "\n".join(told)

    sequences = [lesson.sequence(prompt, recipe.loss) for lesson in chosen]
    return HeldOut(sequences, recipe.evaluate_every, sample)


def _export(training: Training, folder: Path) -> Path:
    """Complete before it has its name."""
    partial = folder.with_name(f"{folder.name}.part")
    if PartialState().is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
    PartialState().wait_for_everyone()
    export(training.model, training.adapted, partial)
    if PartialState().is_main_process:
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    return folder
