"""The cache equals a plain one that keeps everything and chooses with loops, whatever is done to it."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from conftest import small_model
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import Tensor

from kernels.attend import attend
from videollm import VideoLLM
from videollm.budgets import Budgets
from videollm.eviction import EvictionPolicy, H2OPolicy, KeySimilarityPolicy, SnapKVPolicy, WindowPolicy
from videollm.layer_budget import LayerBudgetCache
from videollm.slab import Packing
from videollm.snapshot import restore, snapshot

LAYERS, SLOTS, HEADS, KV_HEADS, DIM = 4, 3, 4, 2, 16
CONTEXT = 30
BUDGETS = Budgets((11, 14, 11, 18), sinks=2, window=4, headroom=7)
ROUTED = (1, 3)  # layers that store a part of the tokens
COUNTS = st.lists(st.integers(0, BUDGETS.headroom), min_size=SLOTS, max_size=SLOTS).filter(any)
FREQUENCIES = 10000.0 ** -(torch.arange(0, DIM, 2, dtype=torch.float64) / DIM)


@pytest.fixture(scope="module", autouse=True)
def _single_thread() -> None:
    torch.set_num_threads(1)


def model_of_context(tokens: int) -> VideoLLM:
    model = small_model()
    model.config.context_tokens = tokens
    return model


MODEL = model_of_context(CONTEXT)


def rotate(states: Tensor, position: int) -> Tensor:
    """Raw states [..., DIM] at a position, as complex numbers."""
    turn = torch.polar(torch.ones(DIM // 2, dtype=torch.float64), position * FREQUENCIES)
    turned = torch.complex(states[..., : DIM // 2], states[..., DIM // 2 :]) * turn
    return torch.cat([turned.real, turned.imag], -1)


class Entry:
    """A token in one KV head: everything as it came, and where it stands now."""

    def __init__(self, query: Tensor, key: Tensor, value: Tensor, text: bool, position: int) -> None:
        self.query, self.key, self.value = query, key, value  # query [group, DIM]
        self.text, self.position, self.attention = text, position, 0.0


class Plain:
    """One layer of one stream, an entry an object; `heads[h]` is a list of entries."""

    def __init__(self, policy: EvictionPolicy, budget: int) -> None:
        self.policy, self.budget = policy, budget
        self.heads: list[list[Entry]] = [[] for _ in range(KV_HEADS)]
        self.next = 0
        self.fresh = 0  # entries of the latest step
        self.offsets: list[int] = []  # their places in its chunk

    def settle(self) -> None:
        for entries in self.heads:
            for index in range(len(entries) - self.fresh, len(entries)):
                for entry, share in zip(entries, attention(entries, index).sum(0), strict=False):
                    entry.attention += float(share)
        self.fresh, self.offsets = 0, []

    def make_room(self, coming: int) -> None:
        full = len(self.heads[0]) + coming > self.budget + BUDGETS.headroom
        if full or self.next + coming > CONTEXT:
            self.evict()

    def evict(self) -> None:
        for entries in self.heads:
            entries[:] = self.chosen(entries)
            for position, entry in enumerate(entries):
                entry.position = position
        self.next = len(self.heads[0])

    def chosen(self, entries: list[Entry]) -> list[Entry]:
        if len(entries) <= self.budget:
            return entries
        middle = range(BUDGETS.sinks, len(entries) - BUDGETS.window)
        score = self.scores(entries)
        free = self.budget - BUDGETS.sinks - BUDGETS.window
        best = sorted(middle, key=lambda index: -score[index])
        text = [index for index in best if entries[index].text][: int(self.policy.text_share * free)]
        kept = text + [index for index in best if index not in text][: free - len(text)]
        kept += [index for index in range(len(entries)) if index not in middle]
        return [entries[index] for index in sorted(kept)]

    def scores(self, entries: list[Entry]) -> list[float]:
        if isinstance(self.policy, WindowPolicy):
            return [float(index) for index in range(len(entries))]
        if isinstance(self.policy, H2OPolicy):
            return [entry.attention for entry in entries]
        if isinstance(self.policy, KeySimilarityPolicy):
            keys = torch.stack([rotate(entry.key, entry.position) for entry in entries])
            unit = keys / keys.norm(dim=1, keepdim=True)
            mean = unit.mean(0)
            return (-(unit @ mean) / mean.norm()).tolist()
        assert isinstance(self.policy, SnapKVPolicy)
        newest = range(max(0, len(entries) - self.policy.observation), len(entries))
        given = torch.zeros(len(entries), dtype=torch.float64)
        for index in newest:
            given[: index + 1] += attention(entries, index).mean(0) / len(newest)
        reach = self.policy.kernel // 2
        return [float(given[max(0, i - reach) : i + reach + 1].mean()) for i in range(len(entries))]


def attention(entries: list[Entry], index: int) -> Tensor:
    """What an entry gives to itself and those before it, [group, index + 1]."""
    query = rotate(entries[index].query, entries[index].position)
    keys = torch.stack([rotate(entry.key, entry.position) for entry in entries[: index + 1]])
    return (query @ keys.T * DIM**-0.5).softmax(-1)


class CacheMachine(RuleBasedStateMachine):
    policy: EvictionPolicy = SnapKVPolicy(observation=4, kernel=3)

    @initialize(seed=st.integers(0, 2**16))
    def begin(self, seed: int) -> None:
        self.random = torch.Generator().manual_seed(seed)
        self.cache = LayerBudgetCache(MODEL, SLOTS, BUDGETS, self.policy)
        for layer in self.cache.layers:
            layer.keys.fill_(torch.nan)
            layer.values.fill_(torch.nan)
            for slab in (layer.queries, layer.attention):
                if slab is not None:
                    slab.fill_(torch.nan)
        self.plain = [[Plain(self.policy, budget) for budget in BUDGETS.entries] for _ in range(SLOTS)]
        self.seen = [0] * SLOTS
        self.latest = [0] * SLOTS
        self.saved: tuple[list[Plain], int] | None = None
        self.folder = tempfile.TemporaryDirectory()
        self.nbytes = self.cache.nbytes

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.folder.cleanup()

    def draw(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.random, dtype=torch.float64)

    @rule(steps=st.lists(COUNTS, min_size=1, max_size=5))
    def read(self, steps: list[list[int]]) -> None:
        for counts in steps:
            self.step(counts)

    def step(self, counts: list[int]) -> None:
        total = sum(counts)
        slots = [slot for slot, count in enumerate(counts) for _ in range(count)]
        offsets = [offset for count in counts for offset in range(count)]
        text = torch.rand(total, generator=self.random) < 0.5
        packing = self.cache.begin_step(counts, text)
        cos, sin = self.cache.rotary(packing)
        for rows in self.plain:
            for plain in rows:
                plain.settle()
        for layer in range(LAYERS):
            for slot, count in enumerate(counts):
                if count:
                    self.plain[slot][layer].make_room(count)
            self.check_rotary(layer, (cos[layer], sin[layer]), slots, offsets)
            index = torch.arange(total)
            if layer in ROUTED:
                index = index[torch.rand(total, generator=self.random) < 0.4]
            if len(index):
                self.append(layer, index, packing, slots, offsets, text)
        for slot, count in enumerate(counts):
            self.seen[slot] += count
            self.latest[slot] = count
            for plain in self.plain[slot]:
                plain.next += count

    def check_rotary(
        self, layer: int, rotary: tuple[Tensor, Tensor], slots: list[int], offsets: list[int]
    ) -> None:
        positions = [
            self.plain[slot][layer].next + offset for slot, offset in zip(slots, offsets, strict=True)
        ]
        angles = torch.tensor(positions, dtype=torch.float64)[:, None] * FREQUENCIES
        torch.testing.assert_close(rotary[0][0, :, : DIM // 2].double(), angles.cos(), atol=1e-5, rtol=0)
        torch.testing.assert_close(rotary[1][0, :, : DIM // 2].double(), angles.sin(), atol=1e-5, rtol=0)
        assert max(positions) < CONTEXT

    def append(
        self,
        layer: int,
        index: Tensor,
        packing: Packing,
        slots: list[int],
        offsets: list[int],
        text: Tensor,
    ) -> None:
        total = len(index)
        query, key = self.draw(total, HEADS, DIM), self.draw(total, KV_HEADS, DIM)
        value = self.draw(total, KV_HEADS, DIM)
        turned_query, turned_key = torch.empty_like(query), torch.empty_like(key)
        for row, token in enumerate(index.tolist()):
            plain = self.plain[slots[token]][layer]
            position = plain.next + offsets[token]
            turned_query[row], turned_key[row] = rotate(query[row], position), rotate(key[row], position)
            for head, entries in enumerate(plain.heads):
                group = query[row].view(KV_HEADS, -1, DIM)[head]
                entries.append(Entry(group, key[row, head], value[row, head], bool(text[token]), position))
            plain.fresh += 1
            plain.offsets.append(offsets[token])
        part = packing if total == len(packing.slots) else packing.select(index)
        self.cache.append(layer, turned_query.float(), turned_key.float(), value.float(), part)

    @precondition(lambda self: any(self.latest))
    @rule(slot=st.integers(0, SLOTS - 1), share=st.floats(0, 1))
    def rewind(self, slot: int, share: float) -> None:
        tokens = round(share * self.latest[slot])
        self.cache.rewind(slot, tokens)
        self.seen[slot] -= tokens
        self.latest[slot] -= tokens
        for plain in self.plain[slot]:
            plain.next -= tokens
            while plain.offsets and plain.offsets[-1] >= self.latest[slot]:
                plain.offsets.pop()
                plain.fresh -= 1
                for entries in plain.heads:
                    entries.pop()

    @rule(slot=st.integers(0, SLOTS - 1))
    def evict(self, slot: int) -> None:
        self.cache.evict(slot)
        for rows in self.plain:
            for plain in rows:
                plain.settle()
        for plain in self.plain[slot]:
            plain.evict()
        self.latest = [0] * SLOTS

    @rule(slot=st.integers(0, SLOTS - 1))
    def reset(self, slot: int) -> None:
        self.cache.reset(slot)
        self.plain[slot] = [Plain(self.policy, budget) for budget in BUDGETS.entries]
        self.seen[slot] = self.latest[slot] = 0

    @rule(slot=st.integers(0, SLOTS - 1))
    def save(self, slot: int) -> None:
        snapshot(self.cache, slot, Path(self.folder.name) / "stream")
        plain = copy.deepcopy(self.plain[slot])
        for layer in plain:  # what is saved can't be rewound any more
            layer.settle()
        self.saved = plain, self.seen[slot]

    @precondition(lambda self: self.saved is not None)
    @rule(slot=st.integers(0, SLOTS - 1))
    def load(self, slot: int) -> None:
        restore(self.cache, slot, Path(self.folder.name) / "stream")
        assert self.saved is not None
        self.plain[slot], self.seen[slot] = copy.deepcopy(self.saved)
        self.latest[slot] = 0

    @rule()
    def go_on_with_a_copy(self) -> None:
        self.cache = copy.deepcopy(self.cache)

    @rule(layer=st.integers(0, LAYERS - 1), slot=st.integers(0, SLOTS - 1))
    def know_less(self, layer: int, slot: int) -> None:
        """On a GPU the host knows only that no more is filled."""
        self.cache.layers[layer].filled[slot] += 3
        self.cache.layers[layer].exact[slot] = False

    @invariant()
    def attention_is_that_of_the_plain_one(self) -> None:
        if not hasattr(self, "cache"):
            return
        assert self.cache.seen == self.seen and self.cache.nbytes == self.nbytes
        for layer, slab in enumerate(self.cache.layers):
            lengths = [len(self.plain[slot][layer].heads[0]) for slot in range(SLOTS)]
            assert slab.lengths.tolist() == lengths
            asking = [slot for slot in range(SLOTS) if lengths[slot]]
            starts = torch.tensor([0, *(length > 0 for length in lengths)]).cumsum(0).int()
            query = self.draw(len(asking), HEADS, DIM)
            out = attend(query.float(), slab.keys, slab.values, slab.lengths, starts, 1, DIM**-0.5)
            for row, slot in enumerate(asking):
                for head, entries in enumerate(self.plain[slot][layer].heads):
                    keys = torch.stack([rotate(entry.key, entry.position) for entry in entries])
                    values = torch.stack([entry.value for entry in entries])
                    group = query[row].view(KV_HEADS, -1, DIM)[head]
                    expected = (group @ keys.T * DIM**-0.5).softmax(-1) @ values
                    got = out[row].view(KV_HEADS, -1, DIM)[head].double()
                    torch.testing.assert_close(got, expected, atol=2e-4, rtol=0)


def machine(policy: EvictionPolicy) -> type:
    kind = type(f"{type(policy).__name__}Machine", (CacheMachine,), {"policy": policy})
    kind.TestCase.settings = settings(max_examples=15, stateful_step_count=20, deadline=None)
    return kind.TestCase


TestSnapKV = machine(SnapKVPolicy(observation=4, kernel=3))
TestWindow = machine(WindowPolicy())
TestH2O = machine(H2OPolicy(text_share=0.0))
TestKeySimilarity = machine(KeySimilarityPolicy(text_share=1.0))
