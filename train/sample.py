"""Makes the sample clip, `python -m train.sample`: free photographs of scikit-image, panned and cut.

Chelsea the cat (CC0, Stéfan van der Walt), a cup of coffee (CC0, Rachel Michetti), a man with a camera (CC0,
Lav Varshney), and an empty wall between them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import av
import cv2
import numpy as np
import skimage.data
import typer

WIDTH, HEIGHT, RATE = 480, 360, 25
# (picture, seconds, centre and zoom at the start, centre and zoom at the end); None is an empty wall.
Shot = tuple[str | None, float, tuple[float, float, float], tuple[float, float, float]]
SHOTS: tuple[Shot, ...] = (
    (None, 2.0, (0.5, 0.5, 1.0), (0.5, 0.5, 1.0)),
    ("chelsea", 5.0, (0.45, 0.5, 1.0), (0.5, 0.5, 1.25)),
    ("coffee", 5.0, (0.5, 0.5, 1.15), (0.5, 0.5, 1.0)),
    (None, 3.0, (0.5, 0.5, 1.0), (0.5, 0.5, 1.0)),
    ("camera", 5.0, (0.5, 0.5, 1.0), (0.5, 0.5, 1.1)),
)


def shot(picture: np.ndarray, seconds: float, start: np.ndarray, end: np.ndarray) -> list[np.ndarray]:
    """The camera moves from one centre and zoom to another: frames uint8 [HEIGHT, WIDTH, 3]."""
    height, width = picture.shape[:2]
    fill = max(WIDTH / width, HEIGHT / height)
    frames = []
    for share in np.linspace(0, 1, round(seconds * RATE)):
        x, y, zoom = start + (end - start) * share
        scale = fill * zoom
        x = np.clip(x * width * scale, WIDTH / 2, width * scale - WIDTH / 2)
        y = np.clip(y * height * scale, HEIGHT / 2, height * scale - HEIGHT / 2)
        matrix = np.array([[scale, 0, WIDTH / 2 - x], [0, scale, HEIGHT / 2 - y]], np.float32)
        frames.append(cv2.warpAffine(picture, matrix, (WIDTH, HEIGHT), flags=cv2.INTER_AREA))
    return frames


def main(out: Annotated[Path, typer.Option(help="the clip")] = Path("assets/sample.mp4")) -> None:
    """Write the sample clip, H.264."""
    wall = np.full((HEIGHT, WIDTH, 3), (126, 132, 138), np.uint8)
    with av.open(str(out), "w") as container:
        stream = container.add_stream("h264", rate=RATE, options={"crf": "26", "preset": "slow"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for name, seconds, start, end in SHOTS:
            picture = getattr(skimage.data, name)() if name else wall
            if picture.ndim == 2:
                picture = np.repeat(picture[..., None], 3, axis=2)
            for frame in shot(picture, seconds, np.array(start), np.array(end)):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


if __name__ == "__main__":
    typer.run(main)
