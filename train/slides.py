"""Slide shows: the shortest lessons. A new thing is named at once; the same thing again is not.

Half of the slides are photographs. The others are made-up class distributions without any picture: they
keep alive the thousands of names that no photograph here shows, and show any of them beside each other.
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
# Of the made-up ones.
THINGS_SHARES = (0.5, 0.35, 0.15)  # of frames with one thing, two, three
GROUP_SHARES = (0.7, 0.3)
COLUMNS = 3
OTHERS = 5
EVENNESS = 2.0  # of what is left for others: one that stands out would be one more thing to tell

Class = tuple[int, int]  # a group, and the index in it


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
            pictures, names = self._slide(rng)
            for position, picture in enumerate(pictures):
                show.frame(picture, speaks=position == 0, cut=position == 0)
                if position == 0:
                    show.narrate(in_view(names))
        return show.sequence

    def _slide(self, rng: np.random.Generator) -> tuple[list[np.ndarray], list[str]]:
        """One or two pictures of the same, and the names of what they show from the left."""
        count = 2 if rng.random() < STAYS_SHARE else 1
        if rng.random() >= MADE_UP_SHARE:
            photograph = self.renaming.photograph(self.photographs[rng.integers(len(self.photographs))], rng)
            views = rng.permutation(len(photograph.features))[:count]
            return list(photograph.features[views]), [photograph.name]
        things = self._things(int(rng.choice([1, 2, 3], p=THINGS_SHARES)), rng)
        names = [self.groups[group][index] for group, index in things]
        return [self._made_up(things, rng) for _ in range(count)], names

    def _things(self, count: int, rng: np.random.Generator) -> list[Class]:
        """So many classes that have a name each, "nothing" not among them."""
        named = [len(group) for group in self.groups]
        named[-1] -= 1
        things: dict[str, Class] = {}
        while len(things) < count:
            group = int(rng.choice(len(named), p=GROUP_SHARES))
            thing = group, int(rng.integers(named[group]))
            things.setdefault(self.groups[group][thing[1]], thing)
        return list(things.values())

    def _made_up(self, things: list[Class], rng: np.random.Generator) -> np.ndarray:
        """Logits [tokens, classes] of a frame of up to three things from the left: everywhere the class of
        what is there, surest in the middle row, and a few others beside it."""
        tokens = len(self.prompt.frame)
        columns = np.sort(np.resize(rng.permutation(len(things)), COLUMNS))
        shown = [things[rng.integers(len(things))]]  # the summary's
        shown += [things[column] for column in np.resize(columns, tokens - 1)]
        sure = rng.beta(2, 1) * rng.random(tokens)
        middle = 1 + (tokens - 1) // COLUMNS // 2 * COLUMNS
        sure[[0, *range(middle, middle + COLUMNS)]] = rng.beta(2, 1)
        nothing = len(self.groups) - 1, len(self.groups[-1]) - 1
        shares = []
        for number, names in enumerate(self.groups):
            share = np.zeros((tokens, len(names)), np.float32)
            others = rng.integers(len(names), size=OTHERS)
            for row, thing in enumerate(shown):
                # What another group names is none of the last group's things; groups before it don't know.
                group, index = thing if thing[0] == number else nothing
                known = 0.0
                if group == number:
                    known = share[row, index] = sure[row]
                np.add.at(share[row], others, (1 - known) * rng.dirichlet(np.full(OTHERS, EVENNESS)))
            shares.append(share)
        return np.log(np.concatenate(shares, axis=1) + LEAST_SHARE)
