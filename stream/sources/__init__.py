"""Where frames come from: files, cameras, network streams, pipes and folders of pictures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

from stream.sources.base import Source, SourceError
from stream.sources.camera import CameraSource
from stream.sources.decord import DecordSource
from stream.sources.images import IMAGE_SUFFIXES, ImageSource, list_images
from stream.sources.opening import STANDARD_INPUT, display_name, is_address
from stream.sources.pyav import PyAVSource

__all__ = ["Source", "SourceError", "open_source"]


def open_source(
    uri: str,
    fps: float = 2.0,
    *,
    max_side: int | None = None,
    reader: Literal["pyav", "decord"] = "pyav",
) -> Source:
    """Open a file, "camera:0", an rtsp://, http:// or udp:// address, "-" (a pipe) or a folder of images.

    Yields at most `fps` frames a second, scaled down so that neither side exceeds `max_side`. `reader`
    chooses the decoder of files. Raises SourceError when there is nothing to read.
    """
    if not (fps > 0 and math.isfinite(fps)):
        raise SourceError(f"cannot sample {fps:g} frames a second; give a rate above 0")
    if max_side is not None and max_side < 1:
        raise SourceError(f"cannot scale frames to {max_side} pixels; give a size of at least 1")
    if uri.startswith("camera:"):
        return CameraSource(uri.removeprefix("camera:"), fps, max_side)
    if is_address(uri) or uri == STANDARD_INPUT:
        if reader == "decord":
            raise SourceError(f"decord reads only files, not {display_name(uri)}; leave the reader at pyav")
        return PyAVSource(uri, fps, max_side)
    try:
        return _open_path(Path(uri), fps, max_side, reader)
    except OSError as error:  # a name too long, a parent folder without access
        raise SourceError(f"{uri} cannot be opened ({error.strerror}); check the path") from error


def _open_path(path: Path, fps: float, max_side: int | None, reader: str) -> Source:
    if path.is_dir():
        return ImageSource(list_images(path), path.name, fps, max_side)
    if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES:
        return ImageSource([path], path.name, fps, max_side)
    if reader == "decord":
        return DecordSource(path, fps, max_side)
    return PyAVSource(str(path), fps, max_side)
