"""Media to compose clips of: photographs of scikit-image, and cut-outs made of some of them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

from train.media import CutOut, Footage, Media, Photograph

NAMES = {"wild cat": "chelsea", "cup": "coffee", "person": "astronaut", "camera": "camera", "coin": "coins"}


def photograph(name: str, picture: str) -> Photograph:
    file = io.BytesIO()
    Image.fromarray(getattr(skimage.data, picture)()).convert("RGB").save(file, "JPEG")
    return Photograph(name, picture, file.getvalue())


def small_media(folder: Path) -> Media:
    """`folder` takes the cut-outs' files."""
    cutouts = []
    for name, picture in (("soccer ball", "coins"), ("globe", "hubble_deep_field"), ("tiger", "chelsea")):
        pixels = np.array(
            Image.fromarray(getattr(skimage.data, picture)()).convert("RGBA").resize((120, 120))
        )
        y, x = np.ogrid[:120, :120]
        pixels[..., 3] = np.where((x - 60) ** 2 + (y - 60) ** 2 < 55**2, 255, 0)
        Image.fromarray(pixels).save(folder / f"{name}.png")
        cutouts.append(CutOut(name, folder / f"{name}.png"))
    clip = Path(__file__).parents[2] / "assets" / "sample.mp4"
    return Media(
        photographs=[photograph(name, picture) for name, picture in NAMES.items()],
        cutouts=cutouts,
        footage=[Footage("bottle", clip.read_bytes())],
        textures=[np.stack([skimage.data.brick()] * 3, axis=2)],
    )
