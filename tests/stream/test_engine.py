"""The engine: streams that step together say what each would say alone."""

from __future__ import annotations

import pytest
import torch
from conftest import FAMILIES, small_model
from hypothesis import given, settings
from hypothesis import strategies as st
from test_session import frames

from stream.engine import Engine
from stream.frames import Event
from stream.session import Session
from videollm import VideoLLM
from videollm.packed import Chunk, read

SPOKEN = 0.0034  # a threshold under which some frames speak and others don't


def together(model: VideoLLM, streams: list[tuple[int, int]], threshold: float) -> list[list[Event]]:
    """What each stream says, (seed, frames) each, all in one engine; each begins as the others go on."""
    engine = Engine(model, slots=len(streams))
    sessions = [Session(model, threshold=threshold, engine=engine) for _ in streams]
    said: dict[int, list[Event]] = {session.slot: [] for session in sessions}

    def step() -> None:
        for slot, events in engine.step().items():
            said[slot] += events

    for session, (seed, count) in zip(sessions, streams, strict=True):
        session.ask("What left?", time=1.0)
        for frame in frames(count, seed):
            engine.submit(session.slot, session.watching(frame))
        engine.submit(session.slot, session.ending())
        for _ in range(seed % 4):
            step()
    while engine.busy:
        step()
    return [said[session.slot] for session in sessions]


def alone(model: VideoLLM, seed: int, count: int, threshold: float) -> list[Event]:
    session = Session(model, threshold=threshold)
    session.ask("What left?", time=1.0)
    said = [event for frame in frames(count, seed) for event in session.step(frame)]
    return said + session.finish()


@given(
    streams=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 5)), min_size=1, max_size=4),
    router=st.sampled_from(["top_k", "threshold", "p_mod", "full"]),
    threshold=st.sampled_from([0.0, SPOKEN, 1.0]),
)
@settings(max_examples=12, deadline=None)
def test_a_stream_says_the_same_whoever_its_neighbours_are(
    streams: list[tuple[int, int]], router: str, threshold: float
) -> None:
    model = small_model(router=router)
    expected = [alone(model, seed, count, threshold) for seed, count in streams]
    assert together(model, streams, threshold) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_chunks_equal_the_unpacked_model(family: str) -> None:
    model = small_model(family)
    frame = [model.config.frame_token_id] * model.config.tokens_per_frame
    texts = [[1, 2, *frame, 3], [4], [*frame, 5, 6, *frame]]
    pixels = [torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8) if n else None for n in (1, 0, 2)]
    engine = Engine(model, slots=4)
    chunks = [
        Chunk(slot, *parts) for slot, parts in zip((2, 0, 3), zip(texts, pixels, strict=True), strict=True)
    ]
    first = read(model, chunks, engine.cache)
    second = read(model, [Chunk(3, [7]), Chunk(2, [8, 9])], engine.cache)
    with torch.inference_mode():
        for row, (ids, pictures) in enumerate(zip(texts, pixels, strict=True)):
            whole = model(torch.tensor([ids]), pixel_values=pictures).logits[0, -1]
            torch.testing.assert_close(first[row], whole, atol=1e-4, rtol=0)
        for row, (ids, pictures) in enumerate(((texts[2] + [7], pixels[2]), (texts[0] + [8, 9], pixels[0]))):
            whole = model(torch.tensor([ids]), pixel_values=pictures).logits[0, -1]
            torch.testing.assert_close(second[row], whole, atol=1e-4, rtol=0)


def test_slots_are_left_and_taken_anew(tiny: VideoLLM) -> None:
    engine = Engine(tiny, slots=2)
    stays, leaves = (Session(tiny, threshold=1.0, engine=engine) for _ in range(2))
    with pytest.raises(RuntimeError, match="all 2 slots"):
        Session(tiny, engine=engine)
    slabs = [slab.keys.data_ptr() for slab in engine.cache.layers]
    said = [stays.step(frames(3)[0])]
    leaves.step(frames(1, seed=5)[0])
    engine.leave(leaves.slot)
    comes = Session(tiny, threshold=1.0, engine=engine)
    assert comes.seen_tokens == 0 and comes.cache_bytes == 0
    new = comes.step(frames(1)[0])
    said += [stays.step(frame) for frame in frames(3)[1:]]
    assert new == said[0]
    lone = Session(tiny, threshold=1.0)
    assert said == [lone.step(frame) for frame in frames(3)]
    assert [slab.keys.data_ptr() for slab in engine.cache.layers] == slabs


def test_one_alone_cannot_overtake_those_that_step_together(tiny: VideoLLM) -> None:
    engine = Engine(tiny, slots=2)
    one, two = (Session(tiny, threshold=1.0, engine=engine) for _ in range(2))
    engine.submit(one.slot, one.watching(frames(1)[0]))
    engine.step()
    with pytest.raises(RuntimeError, match="submit to the engine"):
        two.step(frames(1)[0])


def test_what_does_not_fit_is_refused(tiny: VideoLLM) -> None:
    tiny.config.context_tokens = 20
    engine = Engine(tiny)
    with pytest.raises(ValueError, match="21 tokens behind 0 don't fit"):
        read(tiny, [Chunk(0, [1] * 21)], engine.cache)
    with pytest.raises(ValueError, match="one chunk a step"):
        read(tiny, [Chunk(0, [1]), Chunk(0, [2])], engine.cache)
    tiny.model.set_attn_implementation("eager")
    with pytest.raises(ValueError, match="attn_implementation"):
        read(tiny, [Chunk(0, [1])], engine.cache)
    with pytest.raises(ValueError, match="at least 1 slot"):
        Engine(tiny, slots=0)


def test_the_future_cannot_be_chosen_from() -> None:
    model = small_model(routes="all")
    with pytest.raises(ValueError, match="future"):
        read(model, [Chunk(0, [1, 2])], Engine(model).cache)
