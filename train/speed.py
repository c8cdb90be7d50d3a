"""The whole loop's speed: decode, look, decide, speak; `python -m train.speed CLIP [--dense]` prints JSON.

As `videollm narrate` runs it: decoding ahead, waiting frames read together.

A process for each measurement, so that peak memory is its own.
"""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path
from typing import Annotated

import typer

from stream.feed import Feed
from stream.frames import Frame
from stream.measure import undo_depth
from stream.sources import open_source
from videollm.cli.loading import load_session
from videollm.cli.play import play


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
    for _ in range(2):  # the first time warms up
        session.reset()
        watched: list[Frame] = []
        begun = time.perf_counter()
        with open_source(str(clip), session.model.config.fps) as source, Feed(source) as feed:
            said = sum(1 for _ in play(feed, session, watched.append))
        seconds = time.perf_counter() - begun
    print(
        json.dumps(
            {
                "frames": len(watched),
                "sayings": said,
                "frames_per_second": len(watched) / seconds,
                "cache_mib": session.cache_bytes / 2**20,
                "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
            }
        )
    )


if __name__ == "__main__":
    typer.run(main)
