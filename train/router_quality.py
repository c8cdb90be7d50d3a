"""Routers beside each other, trained alike: `python -m train.router_quality train|measure --data FOLDER`.

`train` makes a model of every router, once a seed, from nothing on the same lessons for the same number of
steps, fewer than the default model's. `measure` takes those that there are: VideoLLM-online's four metrics
and the narration of a session, on composed clips never trained on, and a training step's memory; into
benchmarks/routers.json and .md. Both go on where they were stopped.
"""

from __future__ import annotations

import itertools
import json
import shutil
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from train.benchmark import machine, told, watch
from train.compose import FPS, Composition, compose
from train.data.dialogue_sequence import dialogue_sequence
from train.data.encoding import encode
from train.evaluation.composed import composed_dialogue, composed_metrics
from train.export import export
from train.lessons import Lessons
from train.material import prepare, vision_tower
from train.measure import Peak
from train.media import load_media
from train.objective import adapt, trained_connector
from train.options import Albums, Clips, ClipSteps, Data, NamingSteps, Work
from train.pocket import new_model
from train.precision import mixed_precision
from train.results import Results
from train.router_report import COLUMNS, render, summary
from train.scoring import NarrationScore
from train.sequences import pack
from train.trainer import DrawnStage, Settings, Training
from train.vocabulary import load_vocabulary
from videollm import VideoLLM
from videollm.checkpoints import load_adapter
from videollm.cli.loading import load_session
from videollm.configuration import DepthConfig
from videollm.files import write_whole

ROUTERS = ("full", "top_k", "threshold", "p_mod", "early_exit", "layer_skip", "random", "uniform")
# Neither the training clips' seeds nor the default model's benchmark's.
CLIP_SEED = 2_000_000
SHOWN_CLIPS = 10
STEP_CLIPS = 4  # about as many frames as a step of training reads
RECIPE = "recipe.json"  # beside each model: how it was trained, and how long that took

Models = Annotated[Path, typer.Option(help="the folder of the models' folders, ROUTER-SEED each")]

app = typer.Typer(no_args_is_help=True, help=__doc__)
console = Console()


@app.command()
def train(
    data: Data,
    models: Models = Path("runs/routers"),
    work: Work = Path("runs/pocket"),
    clips: Clips = 1300,
    albums: Albums = 600,
    naming_steps: NamingSteps = 30,
    clip_steps: ClipSteps = 50,
    seeds: Annotated[int, typer.Option(help="models of each router")] = 3,
) -> None:
    """Train every router. A model that is there already is not trained again."""
    recipe = {"clips": clips, "albums": albums, "naming_steps": naming_steps, "clip_steps": clip_steps}
    material = prepare(data, work, clips, albums, seed=0)
    for seed, router in itertools.product(range(seeds), ROUTERS):
        folder = models / f"{router}-{seed}"
        if folder.is_dir():
            continue
        console.print(f"[bold]{router}, seed {seed}")
        torch.manual_seed(seed)
        stages, partial = work / folder.name, models / f"{folder.name}.part"
        adapted = adapt(new_model(material, DepthConfig(router=router)))
        training = Training(adapted, Settings(stages, seed), logits=True)
        lessons = Lessons.of(material, training.prompt)
        begun, processed = time.perf_counter(), time.process_time()
        training.run(DrawnStage("naming", naming_steps, lessons.shows))
        training.run(DrawnStage("clips", clip_steps, lessons.clips))
        took = {
            "training_seconds": time.perf_counter() - begun,
            "training_processor_seconds": time.process_time() - processed,
        }
        shutil.rmtree(partial, ignore_errors=True)
        export(training.model, training.adapted, partial)
        write_whole(partial / RECIPE, (json.dumps(recipe | took, indent=1) + "\n").encode())
        partial.rename(folder)
        shutil.rmtree(stages)


@app.command()
def measure(
    data: Data,
    models: Models = Path("runs/routers"),
    out: Annotated[Path, typer.Option(help="where the figures go")] = Path("benchmarks/routers.json"),
    clips: Annotated[int, typer.Option(help="held-out clips")] = 100,
) -> None:
    """Measure the models that there are; one that was measured is not measured again."""
    try:
        results = Results(out, {"clips": clips, "clip_seed": CLIP_SEED}, machine())
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--out") from error
    media, tower = load_media(data, "heldout"), vision_tower()
    composed = [compose(media, seed) for seed in range(CLIP_SEED, CLIP_SEED + clips)]
    encoded = [(clip, encode(tower, clip.frames)) for clip in track(composed, "held-out clips")]
    for folder in sorted(path for path in models.iterdir() if (path / RECIPE).is_file()):
        if folder.name in results.rows:
            continue
        console.print(f"[bold]{folder.name}")
        session, score, said = load_session(str(folder), "cpu"), NarrationScore(), []
        for clip in track(composed, "narrating"):
            said.append(watch(session, clip.frames))
            score.add(clip.happenings, said[-1], load_vocabulary())
        row = json.loads((folder / RECIPE).read_text()) | {
            "session": score.row(),
            "metrics": composed_metrics(VideoLLM.from_pretrained(folder), encoded),
            "step_mib": step_mib(folder, encoded[:STEP_CLIPS]),
            "told": [told(*each) for each in zip(composed[:SHOWN_CLIPS], said, strict=False)],
        }
        results.add(folder.name, row)
    write_whole(out.with_suffix(".md"), render(results.rows, results.facts, ROUTERS).encode())
    shown = Table(*COLUMNS)
    for row in summary(results.rows, ROUTERS):
        shown.add_row(*row)
    console.print(shown)


def step_mib(folder: Path, clips: list[tuple[Composition, np.ndarray]]) -> float:
    """What a training step on clips, given with their features, makes at most beside the weights [MiB]."""
    training = Training(load_adapter(folder), Settings(folder), logits=True)
    connector: Any = trained_connector(training.model)
    sequences = []
    for clip, features in clips:
        with torch.no_grad():
            logits = connector.classifier(torch.from_numpy(features).float()).numpy()
        sequences.append(dialogue_sequence(training.prompt, composed_dialogue(clip), logits, FPS))
    row = pack(sequences, training.model.device)
    with Peak() as counted, torch.autocast("cpu", torch.bfloat16, enabled=mixed_precision() == "bf16"):
        loss, _ = training.objective.train()(**vars(row), total=row.weights.sum().item())
        loss.backward()
    return counted.peak / 2**20


if __name__ == "__main__":
    app()
