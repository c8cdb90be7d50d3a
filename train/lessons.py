"""Lessons: the sequences of a training step, drawn from clips, albums and photographs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from train.compose import CHANGE, FPS
from train.features import ClipFeatures, join
from train.material import Material
from train.renaming import Renaming
from train.sequences import Sequence, clip_sequence
from train.slides import Slides
from videollm.prompt import Prompt

SHOWS_A_STEP = 9
SHOWS_AMONG_CLIPS = 0.12
GLIMPSES_AMONG_CLIPS = 0.45
GLIMPSES_A_STEP = 40
GLIMPSES_A_SEQUENCE = 8
GLIMPSE_STAYS_SHARE = 0.4
CHANGES_AMONG_GLIMPSES = 0.5
# A step of clips reads about as many frames whatever their length: excerpts of one clip, which are cheap and
# full of beginnings, or a few long ones of many clips, in which things may also stand still for long.
FRAMES_A_STEP = 96
EXCERPT = (5, 20)
LONG_SHARE = 0.25
LONG = (32, 96)
STANDS_SHARE = 0.5
STANDS = (8, 48)


@dataclass(frozen=True)
class Lessons:
    """Draws the sequences of a step: slide shows, glimpses, excerpts of clips, or long ones of many clips."""

    prompt: Prompt
    composed: list[ClipFeatures]
    albums: list[ClipFeatures]
    changes: list[ClipFeatures]
    slides: Slides
    renaming: Renaming

    @classmethod
    def of(cls, material: Material, prompt: Prompt) -> Self:
        renaming = Renaming(material.names[-1], material.known)
        slides = Slides(prompt, material.photographs, material.names, renaming)
        return cls(prompt, material.composed, material.albums, material.changes, slides, renaming)

    def shows(self, rng: np.random.Generator) -> list[Sequence]:
        return [self.slides.draw(rng) for _ in range(SHOWS_A_STEP)]

    def clips(self, rng: np.random.Generator) -> list[Sequence]:
        kind = rng.random()
        if kind < SHOWS_AMONG_CLIPS:
            return self.shows(rng)
        if kind < SHOWS_AMONG_CLIPS + GLIMPSES_AMONG_CLIPS:
            drawn = [self._glimpses(rng) for _ in range(GLIMPSES_A_STEP // GLIMPSES_A_SEQUENCE)]
        else:
            draw, (shortest, longest) = (
                (self._long, LONG) if rng.random() < LONG_SHARE else (self._excerpt, EXCERPT)
            )
            length = int(rng.integers(shortest, longest + 1))
            drawn = [draw(length, rng) for _ in range(FRAMES_A_STEP // length)]
        named = [self.renaming.clip(clip, rng) for clip in drawn]
        return [clip_sequence(self.prompt, clip, FPS, rng) for clip in named]

    def _glimpses(self, rng: np.random.Generator) -> ClipFeatures:
        return join([self._glimpse(rng) for _ in range(GLIMPSES_A_SEQUENCE)])

    def _glimpse(self, rng: np.random.Generator) -> tuple[ClipFeatures, np.ndarray]:
        """A scene of an album: one frame, or those before and behind a change; each may stay for another."""
        changes = rng.random() < CHANGES_AMONG_GLIMPSES
        pages, length = (self.changes, CHANGE) if changes else (self.albums, 1)
        page = pages[rng.integers(len(pages))]
        scenes = np.arange(len(page.features)).reshape(-1, length)  # [scenes, length], indices of frames
        # Several things at a time are the hardest to tell, and seldom: as often as there are things.
        things = np.array([max(1, len(sights)) for sights in page.clip.sights])[scenes].max(axis=1)
        frames = scenes[rng.choice(len(scenes), p=things / things.sum())]
        return page, np.repeat(frames, 1 + (rng.random(length) < GLIMPSE_STAYS_SHARE))

    def _excerpt(self, length: int, rng: np.random.Generator) -> ClipFeatures:
        clip = self._any(rng)
        frames = len(clip.features)
        start = int(rng.integers(max(0, frames - length) + 1))
        return join([(clip, np.arange(start, min(start + length, frames)))])

    def _long(self, length: int, rng: np.random.Generator) -> ClipFeatures:
        pieces: list[tuple[ClipFeatures, np.ndarray]] = []
        left = length
        while left > 0:
            clip = self._any(rng)
            indices = np.arange(len(clip.features))
            if rng.random() < STANDS_SHARE:
                indices = np.append(indices, np.full(rng.integers(*STANDS), indices[-1]))
            pieces.append((clip, indices[:left]))
            left -= len(pieces[-1][1])
        return join(pieces)

    def _any(self, rng: np.random.Generator) -> ClipFeatures:
        return self.composed[rng.integers(len(self.composed))]
