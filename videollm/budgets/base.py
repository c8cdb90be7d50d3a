"""How many entries each layer of a cache keeps."""

from __future__ import annotations

from dataclasses import dataclass


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
        least = self.sinks + self.window
        if not self.entries or min(self.entries) <= least:
            raise ValueError(
                f"a budget of {min(self.entries, default=0)} entries in a layer is too small: {self.sinks} "
                f"sinks and a window of {self.window} stay in any case; give at least {least + 1}"
            )

    def check(self, context: int) -> None:
        """ValueError where a stream of these budgets would leave a context of so many tokens."""
        most = context - self.headroom
        if max(self.entries) > most:
            raise ValueError(
                f"a budget of {max(self.entries)} entries and a chunk of {self.headroom} tokens don't fit "
                f"into a context of {context}; give at most {most} entries, or no budget"
            )


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
