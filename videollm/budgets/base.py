"""How many entries each layer of a cache keeps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from videollm.budgets.calibration import Calibration


@dataclass(frozen=True)
class Budgets:
    """What an evicting cache keeps of a stream, in entries of each layer and KV head.

    `entries` is each layer's budget. Of these the first `sinks` of the stream and the newest `window` stay in
    any case, the policy chooses the others. A layer's row has room for `headroom` more, which fill up before
    it evicts: the longest chunk that can be read in a step.
    """

    entries: tuple[int, ...]
    sinks: int = 4
    window: int = 32
    headroom: int = 128

    def __post_init__(self) -> None:
        if self.sinks < 0 or self.window < 1 or self.headroom < 1:
            raise ValueError(
                "a budget needs sinks >= 0, window >= 1 and headroom >= 1, "
                f"got {self.sinks}, {self.window} and {self.headroom}"
            )
        if not self.entries or min(self.entries) < self.least:
            raise ValueError(
                f"a budget of {min(self.entries, default=0)} entries in a layer is too small: {self.sinks} "
                f"sinks and a window of {self.window} stay in any case; give at least {self.least}"
            )

    @property
    def least(self) -> int:
        """The smallest budget of a layer: one entry more than stay in any case."""
        return self.sinks + self.window + 1

    def check(self, context: int) -> None:
        """ValueError where a stream of these budgets would leave a context of so many tokens."""
        most = context - self.headroom
        if max(self.entries) > most:
            raise ValueError(
                f"a budget of {max(self.entries)} entries and a chunk of {self.headroom} tokens don't fit "
                f"into a context of {context}; give at most {most} entries, or no budget"
            )


@dataclass(frozen=True)
class Plan:
    """What is to be shared out: `average` entries for each of so many `layers`, none of which may get fewer
    than `least` or more than `most`."""

    layers: int
    average: int
    least: int
    most: int
    calibration: Calibration | None = None

    @property
    def total(self) -> int:
        return self.layers * self.average


def whole(shares: Sequence[float], total: int) -> tuple[int, ...]:
    """Shares that sum to `total`, rounded so that they still do: by largest remainders, which keep their
    order."""
    entries = [math.floor(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda index: entries[index] - shares[index])
    for index in by_remainder[: total - sum(entries)]:
        entries[index] += 1
    return tuple(entries)


def parse_budget(budget: str | int, context: int) -> int:
    """Entries a layer: a number of tokens, or a share of the context such as "20%". ValueError for others."""
    text = str(budget).strip()
    try:
        entries = int(float(text[:-1]) / 100 * context) if text.endswith("%") else int(text)
    except (ValueError, OverflowError):
        entries = 0
    if entries < 1:
        raise ValueError(
            f'a budget is a number of tokens or a share of the context such as "20%", got {text!r}'
        )
    return entries
