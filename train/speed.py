"""The whole loop's speed: decode, look, decide, speak; `python -m train.speed CLIP [--dense]` prints JSON.

A process for each measurement, so that peak memory is its own.
"""

from __future__ import annotations

import itertools
import json
import resource
import time
from pathlib import Path
from typing import Annotated

import typer

from stream.measure import undo_depth
from stream.sources import open_source
from videollm.cli.loading import load_session

WARM_UP_FRAMES = 4


def main(
    clip: Annotated[Path, typer.Argument(help="the clip to watch")],
    dense: Annotated[bool, typer.Option("--dense", help="mixture-of-depths off")] = False,
    model: Annotated[str, typer.Option(help="the model")] = "pocket",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")] = "auto",
) -> None:
    """Watch a clip as fast as it goes."""
    session = load_session(model, device)
    if dense:
        undo_depth(session.model)
    ends, said = [], 0
    with open_source(str(clip), session.model.config.fps) as source:
        for frame in source:
            said += len(session.step(frame))
            ends.append(time.perf_counter())
    # From a frame's end to the next one's: decoding, looking, deciding, speaking.
    steps = [after - before for before, after in itertools.pairwise(ends)]
    measured = sorted(steps[WARM_UP_FRAMES:])
    print(
        json.dumps(
            {
                "frames": len(ends),
                "sayings": said,
                "frames_per_second": len(measured) / sum(measured),
                "median_step_ms": 1e3 * measured[len(measured) // 2],
                "slowest_step_ms": 1e3 * measured[-1],
                "cache_mib": session.cache_bytes / 2**20,
                "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
            }
        )
    )


if __name__ == "__main__":
    typer.run(main)
