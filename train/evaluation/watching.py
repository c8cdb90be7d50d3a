"""Shows a session clips and pictures, and asks."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from stream.frames import Frame
from stream.session import Session
from stream.sources import open_source
from train.evaluation.streamed import MOST_PIXELS, answer_of

Visual = str | Path | Image.Image


def answer(session: Session, visuals: Iterable[Visual], question: str, fps: float) -> str:
    """What a session that begins anew answers behind clips, `fps` frames a second of each, and pictures."""
    session.reset()
    time = 0.0
    for visual in visuals:
        if isinstance(visual, Image.Image):
            session.step(Frame(time, np.asarray(visual.convert("RGB"))))
            time += 1 / fps
            continue
        with open_source(str(visual), fps, max_side=MOST_PIXELS) as source:
            begun = time
            for frame in source:
                time = begun + frame.time
                session.step(Frame(time, frame.pixels))
        time += 1 / fps
    session.ask(question)
    return answer_of(session.finish())
