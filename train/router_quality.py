"""Routers beside each other, trained alike: `python -m train.router_quality train|measure --data FOLDER`.

`train` makes a model of every router, once a seed, from nothing on the same lessons for the same number of
steps, fewer than the default model's. `measure` takes those that there are: VideoLLM-online's four metrics
and the narration of a session, on composed clips never trained on. Both go on where they were stopped.
"""

from __future__ import annotations

import itertools
import json
import shutil
import time
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from train.benchmark import machine, watch
from train.compose import compose
from train.data.encoding import encode
from train.evaluation.composed import composed_metrics
from train.export import export
from train.lessons import Lessons
from train.material import prepare, vision_tower
from train.media import load_media
from train.metrics.streaming import METRICS
from train.objective import adapt
from train.options import Albums, Clips, ClipSteps, Data, NamingSteps, Work
from train.pocket import new_model
from train.results import Results
from train.scoring import NarrationScore
from train.trainer import DrawnStage, Settings, Training
from train.vocabulary import load_vocabulary
from videollm import VideoLLM
from videollm.cli.loading import load_session
from videollm.configuration import DepthConfig
from videollm.files import write_whole

ROUTERS = ("full", "top_k", "threshold", "p_mod", "early_exit", "layer_skip", "random", "uniform")
# Neither the training clips' seeds nor the default model's benchmark's.
CLIP_SEED = 2_000_000
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
        session, score = load_session(str(folder), "cpu"), NarrationScore()
        for clip in track(composed, "narrating"):
            score.add(clip.happenings, watch(session, clip.frames), load_vocabulary())
        metrics = composed_metrics(VideoLLM.from_pretrained(folder), encoded)
        row = json.loads((folder / RECIPE).read_text())
        results.add(folder.name, row | {"session": score.row(), "metrics": metrics})
    console.print(table(results.rows))


def table(rows: dict[str, dict[str, Any]]) -> Table:
    """Means and standard deviations over seeds. TimeDiff is that of the four metrics, teacher-forced."""
    shown = Table("router", "seeds", "named", "narrated", "false an event", *METRICS, "training s")
    runs: dict[str, list[list[float]]] = defaultdict(list)
    for name, row in rows.items():
        said = [row["session"][key] for key in ("named", "narrated", "false_per_event")]
        taught = [row["metrics"][key] for key in METRICS]
        runs[name.rpartition("-")[0]].append([*said, *taught, row["training_processor_seconds"]])
    for router in (router for router in ROUTERS if router in runs):
        columns = zip(*runs[router], strict=True)
        cells = [f"{mean(c):.3f} ± {stdev(c):.3f}" if len(c) > 1 else f"{c[0]:.3f}" for c in columns]
        shown.add_row(router, str(len(runs[router])), *cells)
    return shown


if __name__ == "__main__":
    app()
