"""Streams without end: constant memory, positions that the model knows, and nothing begins anew."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import small_model
from test_session import frames

from stream.engine import Engine
from stream.session import Session
from videollm.budgets import Budgets
from videollm.eviction import POLICIES
from videollm.packed import Chunk, read


def long_engine(
    context: int, budgets: Budgets, slots: int = 1, policy: str = "snapkv", **depth: object
) -> Engine:
    model = small_model(**depth)
    model.config.context_tokens = context
    return Engine(model, slots, budgets, POLICIES[policy]())


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("router", ["top_k", "threshold"])
def test_a_long_stream_stays_within_its_memory_and_its_context(policy: str, router: str) -> None:
    budgets = Budgets((48, 40, 60, 40), headroom=24)
    engine = long_engine(130, budgets, 2, policy, router=router)
    sessions = [Session(engine.model, threshold=0.0, engine=engine) for _ in range(2)]
    cache = engine.cache
    slabs = [layer.keys.data_ptr() for layer in cache.layers]
    nbytes, compacted = cache.nbytes, np.zeros((4, 2), dtype=bool)
    for frame, other in zip(frames(60), frames(60, seed=1), strict=True):
        before = cache.positions.copy()
        engine.submit(sessions[0].slot, sessions[0].watching(frame))
        engine.submit(sessions[1].slot, sessions[1].watching(other))
        while engine.busy:
            engine.step()
        compacted |= cache.positions < before
        assert cache.positions.max() <= 130
        assert (cache.lengths.numpy() <= np.array(budgets.entries)[:, None] + budgets.headroom).all()
    assert compacted.all(), "every layer of every stream evicted"
    assert cache.nbytes == nbytes and [layer.keys.data_ptr() for layer in cache.layers] == slabs
    assert min(session.seen_tokens for session in sessions) > 600
    for layer in cache.layers:
        for slot in range(2):
            marks = layer.marks[slot, :, : layer.filled[slot]] >> 1
            assert (marks.diff(dim=1) > 0).all() and (marks == marks[:1]).all()


@pytest.mark.parametrize("router", ["top_k", "threshold", "full"])
def test_before_anything_is_evicted_a_budget_changes_nothing(router: str) -> None:
    model = small_model(router=router)
    model.config.context_tokens = 1024

    def said(engine: Engine) -> list:
        session = Session(model, threshold=0.0034, engine=engine)
        session.ask("What left?", 2.0)
        events = [event for frame in frames(9) for event in session.step(frame)]
        return [*events, *session.finish(), session.seen_tokens, session.cache_bytes]

    assert said(Engine(model, budget=600)) == said(Engine(model))


def test_nothing_unwritten_is_ever_attended_to() -> None:
    def said(fill: float | None) -> list:
        engine = long_engine(200, Budgets((50,) * 4, headroom=24))
        for layer in engine.cache.layers:
            for slab in (layer.keys, layer.values, layer.queries):
                if fill is not None:
                    slab.fill_(fill)
        session = Session(engine.model, threshold=0.0034, engine=engine)
        session.ask("What left?", 2.0)
        return [event for frame in frames(20) for event in session.step(frame)]

    assert said(torch.nan) == said(None)


def test_an_evicting_context_never_begins_anew() -> None:
    engine = long_engine(400, Budgets((60,) * 4, headroom=40))
    session = Session(engine.model, threshold=1.0, engine=engine)
    session.ask("Why " * 16, 3.0)  # longer than the headroom: read in pieces
    events = [event for at in range(0, 24, 6) for event in session.step(*frames(24)[at : at + 6])]
    assert session.seen_tokens > 2 * 400
    assert {event.kind for event in events} == {"narration", "question", "answer"}
    assert sum(event.kind == "narration" for event in events) == 24


def test_what_is_said_stays_longer_than_frames() -> None:
    engine = long_engine(400, Budgets((60,) * 4, headroom=40))
    session = Session(engine.model, threshold=0.0, engine=engine)
    session.ask("Why?", 0.0)
    for frame in frames(60):
        session.step(frame)
    dense = engine.cache.layers[0]
    text = (dense.marks[0, :, : dense.filled[0]] & 1).sum(1)
    # Half of the 24 places that are chosen for are text's, and so are the system text's sinks. Between the
    # frames, 600 tokens since then, there is an interval token each time, which is no text.
    assert (text >= 12 + 4).all() and (text <= 24 + 4).all()


def test_streams_evict_each_for_itself() -> None:
    budgets = Budgets((50,) * 4, headroom=24)

    def words(streams: list[int]) -> dict[int, torch.Tensor]:
        engine = long_engine(200, budgets, 3)
        for step in range(30):
            chunks = [Chunk(slot, [(slot * 50 + step) % 250] * (slot * 4 + 3)) for slot in streams]
            logits = read(engine.model, chunks, engine.cache)
        return dict(zip(streams, logits, strict=True))

    together = words([0, 1, 2])
    for slot in range(3):
        torch.testing.assert_close(words([slot])[slot], together[slot], atol=1e-4, rtol=0)


def test_what_does_not_fit_is_refused_before_anything_changes() -> None:
    engine = long_engine(200, Budgets((50,) * 4, headroom=24))
    read(engine.model, [Chunk(0, [1] * 24)], engine.cache)
    with pytest.raises(ValueError, match="25 tokens are too long a chunk for a headroom of 24; read them in"):
        read(engine.model, [Chunk(0, [1] * 25)], engine.cache)
    assert engine.cache.seen == [24] and engine.cache.lengths.unique().tolist() == [24]
    with pytest.raises(ValueError, match="too small for a frame: give at least 11"):
        long_engine(200, Budgets((50,) * 4, headroom=10))
