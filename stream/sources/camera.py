"""Cameras of this machine, through OpenCV."""

from __future__ import annotations

import time
from collections.abc import Iterator

import cv2
import numpy as np

from stream.frames import Frame
from stream.sources.base import Source, SourceError
from stream.sources.sampling import Sampler
from stream.sources.square import fit_size, resize

STALL_SECONDS = 3.0
RETRY_SECONDS = 0.02


class CameraSource(Source):
    """A camera, by its number ("0") or device path ("/dev/video0"); a frame's time is when it arrived."""

    live = True

    def __init__(self, device: str, fps: float, max_side: int | None) -> None:
        super().__init__()
        self.name = f"camera {device}"
        self._fps = fps
        self._max_side = max_side
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # the error says it in one line
        self._capture = cv2.VideoCapture(int(device) if device.isdecimal() else device)
        if not self._capture.isOpened():
            raise SourceError(f"{self.name} is not there or is in use; plug it in, or try camera:1")

    def _frames(self) -> Iterator[Frame]:
        sampler = Sampler(self._fps)
        start: float | None = None
        while self._grab():
            now = time.monotonic()
            start = now if start is None else start
            # Grabbing is cheap; only the frames that are kept get decoded.
            passed = round(now - start, 6)
            if sampler.takes(passed):
                decoded, pixels = self._capture.retrieve()
                if decoded:
                    yield Frame(passed, self._convert(pixels))

    def _grab(self) -> bool:
        """Wait for the next frame; False once closed."""
        deadline = time.monotonic() + STALL_SECONDS
        while not self._closed:
            if self._capture.grab():
                return True
            if time.monotonic() > deadline:
                raise SourceError(
                    f"{self.name} stopped delivering pictures; check its cable, then start again"
                )
            time.sleep(RETRY_SECONDS)
        return False

    def _convert(self, pixels: np.ndarray) -> np.ndarray:
        height, width = pixels.shape[:2]  # [height, width, 3], BGR
        pixels = resize(pixels, *fit_size(width, height, self._max_side))
        return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)

    def _release(self) -> None:
        self._capture.release()
