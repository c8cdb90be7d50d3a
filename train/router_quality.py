"""Routers beside each other, trained alike: `python -m train.router_quality --data ../shared/data`.

Every router, once a seed, is trained from nothing on the same lessons for the same number of steps, fewer
than the default model's, and measured on composed clips never trained on: the loss of what is to be said and
kept silent about, VideoLLM-online's four metrics, and the narration of a session. What was measured is kept:
a stopped run goes on.
"""

from __future__ import annotations

import itertools
import json
import shutil
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any, cast

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from train.benchmark import watch
from train.classifier import classify
from train.compose import FPS, Composition, compose
from train.data.encoding import encode
from train.evaluation.composed import composed_metrics
from train.export import export
from train.features import NO_FRAMES, ClipFeatures
from train.lessons import Lessons
from train.material import Material, prepare, vision_tower
from train.media import load_media
from train.metrics.streaming import METRICS
from train.objective import adapt
from train.options import Albums, Clips, ClipSteps, Data, NamingSteps, Work
from train.pocket import new_model
from train.scoring import NarrationScore
from train.sequences import clip_sequence
from train.trainer import DrawnStage, Settings, Training
from train.vocabulary import load_vocabulary
from videollm import VideoLLM
from videollm.cli.loading import load_session
from videollm.configuration import DepthConfig
from videollm.connector import ClassNameConnector
from videollm.files import write_whole

ROUTERS = ("full", "top_k", "threshold", "p_mod", "early_exit", "layer_skip", "random", "uniform")
# Neither the training clips' seeds nor the default model's benchmark's.
CLIP_SEED = 2_000_000
NARRATED_CLIPS = 30
LOSS_CLIPS = 100
BATCH = 4

console = Console()


def held_out(data: Path, material: Material) -> list[tuple[Composition, ClipFeatures]]:
    """Clips never trained on, with the logits of the classifiers that were fitted on all of training."""
    media, tower = load_media(data, "heldout"), vision_tower()
    imagenet, learned = material.classifiers
    clips = []
    for seed in track(range(CLIP_SEED, CLIP_SEED + LOSS_CLIPS), "held-out clips"):
        clip = compose(media, seed)
        logits = classify(imagenet, learned, encode(tower, clip.frames))
        labels = Composition(NO_FRAMES, clip.sights, clip.happenings, clip.kind, seed)
        clips.append((clip, ClipFeatures(labels, logits)))
    return clips


def measure(
    router: str,
    seed: int,
    steps: tuple[int, int],
    material: Material,
    clips: list[tuple[Composition, ClipFeatures]],
    work: Path,
) -> dict[str, Any]:
    """Train one model and score it; what training wrote is removed again."""
    torch.manual_seed(seed)
    work.mkdir(parents=True, exist_ok=True)
    adapted = adapt(new_model(material, DepthConfig(router=router)))
    training = Training(adapted, Settings(work, seed), logits=True)
    lessons = Lessons.of(material, training.prompt)
    begun = time.perf_counter()
    training.run(DrawnStage("naming", steps[0], lessons.shows))
    training.run(DrawnStage("clips", steps[1], lessons.clips))
    seconds = time.perf_counter() - begun
    sequences = [
        clip_sequence(training.prompt, features, FPS, np.random.default_rng(features.clip.seed))
        for _, features in clips
    ]
    losses = [training.loss(sequences[at : at + BATCH]) for at in range(0, len(sequences), BATCH)]
    export(training.model, training.adapted, work / "model")
    session, score = load_session(str(work / "model"), "cpu"), NarrationScore()
    for clip, _ in track(clips[:NARRATED_CLIPS], "narrating"):
        score.add(clip.happenings, watch(session, clip.frames), load_vocabulary())
    model = VideoLLM.from_pretrained(work / "model")
    metrics = composed_metrics(
        model,
        [(features.clip, features.features) for _, features in clips],
        cast(ClassNameConnector, model.connector).speak,
    )
    shutil.rmtree(work)
    return {"loss": mean(losses), "training_seconds": seconds, **score.row(), "metrics": metrics}


def table(results: dict[str, list[dict[str, Any]]]) -> Table:
    """Means and spreads over seeds. TimeDiff is that of the four metrics, teacher-forced."""
    columns = ("loss", "named", "narrated", "false_per_event", "training_seconds", *METRICS)
    shown = Table("router", "seeds", *columns)
    for router, runs in results.items():
        cells = []
        for column in columns:
            values = [run["metrics"][column] if column in METRICS else run[column] for run in runs]
            spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{mean(values):.3f}{spread}")
        shown.add_row(router, str(len(runs)), *cells)
    return shown


def main(
    data: Data,
    out: Annotated[Path, typer.Option(help="where the figures go")] = Path("benchmarks/routers.json"),
    work: Work = Path("runs/pocket"),
    clips: Clips = 1300,
    albums: Albums = 600,
    naming_steps: NamingSteps = 30,
    clip_steps: ClipSteps = 50,
    seeds: Annotated[int, typer.Option(help="models of each router")] = 3,
) -> None:
    """Train and measure every router."""
    recipe = {"clips": clips, "albums": albums, "naming_steps": naming_steps, "clip_steps": clip_steps}
    results: dict[str, Any] = json.loads(out.read_text()) if out.is_file() else {"recipe": recipe, "runs": {}}
    if results["recipe"] != recipe:
        raise typer.BadParameter(f"{out} is of another recipe ({results['recipe']}); name another --out")
    material = prepare(data, work, clips, albums, seed=0)
    unseen = held_out(data, material)
    for seed, router in itertools.product(range(seeds), ROUTERS):
        runs = results["runs"].setdefault(router, [])
        if len(runs) <= seed:
            console.print(f"[bold]{router}, seed {seed}")
            steps = naming_steps, clip_steps
            runs.append(measure(router, seed, steps, material, unseen, work / f"{router}-{seed}"))
            write_whole(out, (json.dumps(results, indent=1) + "\n").encode())
    console.print(table(results["runs"]))


if __name__ == "__main__":
    typer.run(main)
