"""The four metrics of models that `train.router_quality` left: `python -m train.router_metrics --data FOLDER
--models runs/routers --results runs/routers.json`.

Each model's folder is ROUTER-SEED. Figures are added to the results, those that are there stay.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track

from train.compose import compose
from train.data.encoding import encode
from train.evaluation.composed import composed_metrics
from train.material import vision_tower
from train.media import load_media
from train.options import Data
from train.router_quality import CLIP_SEED, LOSS_CLIPS, table
from videollm import VideoLLM
from videollm.cli.loading import quieten_transformers
from videollm.files import write_whole


def main(
    data: Data,
    models: Annotated[Path, typer.Option(help="the folder of the models' folders")],
    results: Annotated[Path, typer.Option(help="the figures to add to")],
) -> None:
    """Measure every model whose four metrics are not among the figures yet."""
    quieten_transformers()
    figures = json.loads(results.read_text())
    media, tower = load_media(data, "heldout"), vision_tower()
    clips = []
    for seed in track(range(CLIP_SEED, CLIP_SEED + LOSS_CLIPS), "held-out clips"):
        clip = compose(media, seed)
        clips.append((clip, encode(tower, clip.frames)))
    for router, runs in figures["runs"].items():
        for seed, row in enumerate(runs):
            folder = models / f"{router}-{seed}"
            if "metrics" in row or not folder.is_dir():
                continue
            row["metrics"] = composed_metrics(VideoLLM.from_pretrained(folder), clips)
            write_whole(results, (json.dumps(figures, indent=1) + "\n").encode())
    whole = {
        router: runs for router, runs in figures["runs"].items() if all("metrics" in run for run in runs)
    }
    Console().print(table(whole))


if __name__ == "__main__":
    typer.run(main)
