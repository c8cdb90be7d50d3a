"""Other names for what is seen: every lesson becomes one for any of the learned names.

What a thing is called is told to the decoder by logits alone, so that exchanging the logits of classes, and
the names with them, makes a true lesson of other things. Some names have a single picture; without this the
decoder meets them too seldom to say them when it is told.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from train.features import ClipFeatures, PhotographFeatures

RENAMED_SHARE = 0.6


@dataclass(frozen=True)
class Renaming:
    """Exchanges the names of the last group of classes among each other, but for those in `known`: of their
    photographs another group speaks."""

    names: list[str]  # of the last group's classes, the last of which is "nothing"
    known: set[str]

    def clip(self, clip: ClipFeatures, rng: np.random.Generator) -> ClipFeatures:
        """The clip with other names, or in a share of cases as it is."""
        if rng.random() >= RENAMED_SHARE:
            return clip
        order, called = self._draw(rng)
        labels = replace(
            clip.clip,
            sights=tuple(tuple(replace(s, name=called[s.name]) for s in seen) for seen in clip.clip.sights),
            happenings=tuple(replace(h, name=called[h.name]) for h in clip.clip.happenings),
        )
        return ClipFeatures(labels, self._exchanged(clip.features, order))

    def photograph(self, photograph: PhotographFeatures, rng: np.random.Generator) -> PhotographFeatures:
        """The same of a photograph."""
        if rng.random() >= RENAMED_SHARE:
            return photograph
        order, called = self._draw(rng)
        return PhotographFeatures(called[photograph.name], self._exchanged(photograph.features, order))

    def _draw(self, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, str]]:
        """For each class the one whose logits it gets, and what each name becomes."""
        order = np.arange(len(self.names))
        free = [at for at, name in enumerate(self.names[:-1]) if name not in self.known]
        order[free] = rng.permutation(free)
        return order, {self.names[old]: self.names[new] for new, old in enumerate(order)}

    def _exchanged(self, logits: np.ndarray, order: np.ndarray) -> np.ndarray:
        """Logits [.., classes] of all groups."""
        others = logits.shape[-1] - len(order)
        return np.concatenate([logits[..., :others], logits[..., others:][..., order]], axis=-1)
