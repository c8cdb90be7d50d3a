"""Which frames of a stream its journal keeps, and how small.

A frame at which something was said or asked is always kept. Of the others one is kept where the picture has
changed since the last one kept, at most one a second, and where none was for ten seconds.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from PIL import Image

from stream.frames import Event, Frame
from stream.journal.writer import Journal, Keepsake
from stream.sources.square import fit_size, pad_to_square, resize
from videollm import VideoLLM
from videollm.signature import frame_signatures, signature_space

LEAST_SECONDS = 1.0
MOST_SECONDS = 10.0
GLANCE = 16  # pixels a side, at which pictures are compared
CHANGE = 6.0  # mean difference of grey values, of 255: noise and flicker stay below
QUALITY = 85  # of JPEG


@dataclass(frozen=True)
class _Look:
    frame: Frame
    glance: np.ndarray  # int16 [GLANCE, GLANCE]
    kept: bool = False


class Keeper:
    """Hands a journal what is said, and the frames that it keeps. Pictures are as large as the model's vision
    tower sees them."""

    def __init__(self, model: VideoLLM, journal: Journal) -> None:
        self.model = model
        self.journal = journal
        self._space = signature_space(model)
        self._before: _Look | None = None  # the latest frame
        self._kept: _Look | None = None  # the latest kept

    def record(self, events: Sequence[Event], frames: Sequence[Frame]) -> list[Event]:
        """Frames that were read, in order of time, and what was said by their end; the journal's notices."""
        return self.journal.record(events, self._choose(events, frames))

    def _choose(self, events: Sequence[Event], frames: Sequence[Frame]) -> list[Keepsake]:
        looks = [_Look(frame, _glance(frame)) for frame in frames]
        seen = [*([self._before] if self._before else []), *looks]
        said = {index for event in events if (index := _at(seen, event)) is not None}
        chosen = []
        for index, look in enumerate(seen):
            if not look.kept and (index in said or self._is_new(look)):
                self._kept = look
                chosen.append(index)
        if seen:
            last = len(seen) - 1
            self._before = replace(seen[-1], kept=seen[-1].kept or last in chosen)
        return self._keepsakes([(seen[index].frame, index in said) for index in chosen])

    def _is_new(self, look: _Look) -> bool:
        if self._kept is None:
            return True
        passed = look.frame.time - self._kept.frame.time
        if passed < LEAST_SECONDS:
            return False
        return passed >= MOST_SECONDS or bool(np.abs(look.glance - self._kept.glance).mean() > CHANGE)

    def _keepsakes(self, chosen: Sequence[tuple[Frame, bool]]) -> list[Keepsake]:
        if not chosen:
            return []
        size = self.model.vision_tower.size
        squares = np.stack([pad_to_square(frame.pixels, size) for frame, _ in chosen])
        signatures = frame_signatures(self.model, torch.from_numpy(squares).permute(0, 3, 1, 2))
        return [
            Keepsake(frame.time, said, _jpeg(frame.pixels, size), self._space, signature)
            for (frame, said), signature in zip(chosen, signatures, strict=True)
        ]


def _at(seen: Sequence[_Look], event: Event) -> int | None:
    """Which frame something was said at; None for notices, and where there was no frame yet."""
    if event.kind == "notice":
        return None
    return max((index for index, look in enumerate(seen) if look.frame.time <= event.time), default=None)


def _glance(frame: Frame) -> np.ndarray:
    small = cv2.resize(frame.pixels, (GLANCE, GLANCE), interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.int16)


def _jpeg(pixels: np.ndarray, size: int) -> bytes:
    small = resize(pixels, *fit_size(pixels.shape[1], pixels.shape[0], size))
    data = io.BytesIO()
    Image.fromarray(small).save(data, "JPEG", quality=QUALITY)
    return data.getvalue()
