"""Slide shows: the shortest lessons. A new thing is named at once; the same thing again is not.

Half of the slides are photographs. The others are made-up class distributions without any picture: they
keep alive the thousands of names that no photograph here shows.
"""

from __future__ import annotations

import numpy as np

from train.features import PhotographFeatures
from train.language import in_view
from train.renaming import Renaming
from train.sequences import LESSON_WEIGHTS, Sequence, StreamWriter
from videollm.prompt import Prompt

SLIDES = 6
MADE_UP_SHARE = 0.5
STAYS_SHARE = 0.5
LEAST_SHARE = 1e-6  # of a class that isn't seen


class Slides:
    """Draws slide shows from photographs and from the names of the classifier's groups.

    The last name of the second group is "nothing": a slide of the first group's class shows it there.
    """

    def __init__(
        self,
        prompt: Prompt,
        photographs: list[PhotographFeatures],
        groups: list[list[str]],
        renaming: Renaming,
    ) -> None:
        self.prompt = prompt
        self.photographs = photographs
        self.groups = groups
        self.renaming = renaming

    def draw(self, rng: np.random.Generator) -> Sequence:
        show = StreamWriter(self.prompt, LESSON_WEIGHTS)
        for _ in range(SLIDES):
            pictures, name = self._slide(rng)
            for position, picture in enumerate(pictures):
                show.frame(picture, speaks=position == 0)
                if position == 0:
                    show.narrate(in_view([name]))
        return show.sequence

    def _slide(self, rng: np.random.Generator) -> tuple[list[np.ndarray], str]:
        """One or two pictures of the same thing, and its name."""
        count = 2 if rng.random() < STAYS_SHARE else 1
        if rng.random() >= MADE_UP_SHARE:
            photograph = self.renaming.photograph(self.photographs[rng.integers(len(self.photographs))], rng)
            views = rng.permutation(len(photograph.features))[:count]
            return list(photograph.features[views]), photograph.name
        imagenet, learned = self.groups
        shares: tuple[tuple[int, int | None], ...]
        if rng.random() < 0.7:
            chosen = int(rng.integers(len(imagenet)))
            shares = (len(imagenet), chosen), (len(learned), len(learned) - 1)
            name = imagenet[chosen]
        else:
            chosen = int(rng.integers(len(learned) - 1))
            shares = (len(imagenet), None), (len(learned), chosen)
            name = learned[chosen]
        return [self._made_up(shares, rng) for _ in range(count)], name

    def _made_up(self, shares: tuple[tuple[int, int | None], ...], rng: np.random.Generator) -> np.ndarray:
        """Logits [tokens, classes] of a frame: the class at most places, a few others beside it."""
        tokens = len(self.prompt.frame)
        groups = []
        for size, chosen in shares:
            group = np.zeros((tokens, size), np.float32)
            others = rng.integers(size, size=5)
            sure = rng.beta(2, 1) * np.where(np.arange(tokens) == 0, 1.0, rng.random(tokens))
            if chosen is None:
                sure[:] = 0
            else:
                group[:, chosen] = sure
            for row in range(tokens):
                np.add.at(group[row], others, (1 - sure[row]) * rng.dirichlet(np.full(len(others), 0.5)))
            groups.append(group)
        return np.log(np.concatenate(groups, axis=1) + LEAST_SHARE)
