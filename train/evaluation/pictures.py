"""A frame of a clip, to be drawn behind a plot."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image

from stream.sources import SourceError, open_source
from stream.sources.square import pad_to_square

SIDE = 162  # pixels


def frame_url(folder: Path, video: str, fps: float) -> str | None:
    """The first frame of a video of a folder, at any depth, as a data: URL of a square JPEG, as a model sees
    it; None where there is no such clip."""
    for path in sorted(folder.rglob(f"{video}.*")):
        try:
            with open_source(str(path), fps, max_side=SIDE) as source:
                frame = next(iter(source), None)
        except SourceError:  # not a clip
            continue
        if frame is not None:
            file = io.BytesIO()
            Image.fromarray(pad_to_square(frame.pixels, SIDE)).save(file, "JPEG")
            return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
    return None
