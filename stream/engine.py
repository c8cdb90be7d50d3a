"""Steps the sessions of many streams together, as one batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from dataclasses import dataclass

from torch import Tensor

from stream.frames import Event
from videollm import VideoLLM
from videollm.budgets import Budgets, build_budgets
from videollm.eviction import EvictionPolicy
from videollm.layer_budget import LayerBudgetCache
from videollm.packed import Chunk, read
from videollm.step_graphs import CudaCapture, StepGraphs


@dataclass(frozen=True)
class Read:
    """What a session wants its stream to read next: token ids, and the frames (uint8 [frames, 3, size, size])
    that lie between them; logits are wanted after each of so many tokens, `ends`, or after all of them."""

    ids: list[int]
    pixels: Tensor | None = None
    ends: tuple[int, ...] | None = None


Script = Generator[Read, Tensor, list[Event]]
"""What a session does with one input: it asks for reads, is given the logits [ends, vocabulary] of
each, and ends with what was said."""


class Engine:
    """One model and the caches of up to `slots` streams.

    A step reads one chunk of every stream that wants one: a frame of some, a question of others, the next
    word of a reply of others again. Slots are taken and left without touching the others, and nothing that a
    stream says depends on its neighbours.

    With a `budget`, entries of each layer or a share of the context such as "20%", streams go on for ever in
    the memory that the engine begins with, and the eviction `policy` chooses what they remember.
    """

    def __init__(
        self,
        model: VideoLLM,
        slots: int = 1,
        budget: Budgets | str | int | None = None,
        policy: EvictionPolicy | None = None,
    ) -> None:
        if slots < 1:
            raise ValueError(f"an engine needs at least 1 slot, got {slots}")
        if budget is not None and not isinstance(budget, Budgets):
            budget = build_budgets(model, budget)
        least = 1 + model.config.tokens_per_frame
        if budget is not None and budget.headroom < least:
            raise ValueError(
                f"a headroom of {budget.headroom} is too small for a frame: give at least {least}"
            )
        self.model = model
        self.context = model.context
        self.cache = LayerBudgetCache(model, slots, budget, policy)
        on_gpu = self.cache.lengths.is_cuda
        self.graphs = StepGraphs(model, self.cache, CudaCapture()) if on_gpu else None
        self._free = list(reversed(range(slots)))
        self._waiting: dict[int, deque[Script]] = {}
        self._running: dict[int, tuple[Script, Read]] = {}

    def join(self) -> int:
        """Take a slot for a new stream. RuntimeError where all are taken."""
        if not self._free:
            raise RuntimeError(f"all {self.cache.slots} slots of the engine are taken")
        slot = self._free.pop()
        self._waiting[slot] = deque()
        return slot

    def leave(self, slot: int) -> None:
        """Forget a stream and give its slot back."""
        self.reset(slot)
        del self._waiting[slot]
        self._free.append(slot)

    def reset(self, slot: int) -> None:
        """Forget a stream, and what it was about to do."""
        self.cache.reset(slot)
        self._waiting[slot].clear()
        self._running.pop(slot, None)

    def submit(self, slot: int, script: Script) -> None:
        """Let a stream do this once it has done what was submitted before."""
        self._waiting[slot].append(script)

    @property
    def busy(self) -> bool:
        """Whether any stream has something to do."""
        return bool(self._running) or any(self._waiting.values())

    def busy_with(self, slot: int) -> bool:
        """Whether this stream has something to do."""
        return slot in self._running or bool(self._waiting[slot])

    def step(self) -> dict[int, list[Event]]:
        """Read one chunk of every stream that has something to do; what those said that are done with one of
        their inputs, by slot."""
        done: dict[int, list[Event]] = {}
        for slot, waiting in self._waiting.items():
            while waiting and slot not in self._running and slot not in done:
                self._advance(slot, waiting.popleft(), None, done)
        if self._running:
            self._read(list(self._running.items()), done)
        return done

    def run(self, slot: int, script: Script) -> list[Event]:
        """Let one stream do this now, while no other has anything to do; what it said by the end."""
        if self.busy:
            raise RuntimeError("other streams are stepping: submit to the engine and step it")
        self.submit(slot, script)
        try:
            while slot not in (done := self.step()):
                pass
        finally:
            self._running.pop(slot, None)  # there still where reading failed
        return done[slot]

    def _read(self, batch: list[tuple[int, tuple[Script, Read]]], done: dict[int, list[Event]]) -> None:
        """One chunk of each of these streams, as one batch, and what they do with it."""
        chunks = [Chunk(slot, wanted.ids, wanted.pixels, wanted.ends) for slot, (_, wanted) in batch]
        ends = [len(chunk.asked) for chunk in chunks]
        logits = read(self.model, chunks, self.cache, self.graphs).split(ends)  # each [ends, vocabulary]
        for (slot, (script, _)), its in zip(batch, logits, strict=True):
            del self._running[slot]
            self._advance(slot, script, its, done)

    def _advance(
        self, slot: int, script: Script, logits: Tensor | None, done: dict[int, list[Event]]
    ) -> None:
        """Up to a script's next read, or to its end."""
        try:
            wanted = next(script) if logits is None else script.send(logits)
        except StopIteration as end:
            done[slot] = end.value
        else:
            self._running[slot] = script, wanted
