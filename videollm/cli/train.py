"""`videollm train`: what a recipe says."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from videollm.cli.errors import CommandError
from videollm.cli.loading import quieten_transformers, refuse_namesake


def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="what to train, on what, and how")],
) -> None:
    """Train a model on folders that "videollm prepare" wrote, as a recipe says.

    The recipe's folder "out" gets the model, what is needed to go on after a stop (run the same command
    again), and the losses for TensorBoard. train/recipes/ has the paper's recipe and one that goes on from
    the default model. For several GPUs: accelerate launch --config_file train/configs/fsdp.yaml -m
    videollm.cli train RECIPE.yaml

    \b
    Examples:
    videollm train train/recipes/pocket-clips.yaml
    tensorboard --logdir runs/pocket-clips
    """
    refuse_namesake()
    quieten_transformers()
    from train import recipe_training
    from train.recipe import read_recipe

    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", FutureWarning
            )  # between PEFT and transformers, none of the user's
            out = recipe_training.train(read_recipe(recipe))
    except ValueError as error:
        raise CommandError(str(error)) from error
    told = f"the model is in {out}; try it: videollm narrate CLIP --model {out}"
    Console(stderr=True).print(told, soft_wrap=True, highlight=False, markup=False)
