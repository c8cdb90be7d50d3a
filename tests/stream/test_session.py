"""The session: what it reads is one sequence, one reply at a time, each question at its own time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import Recorder, small_model
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.frames import Frame
from stream.session import Session
from videollm import VideoLLM


def frames(count: int, seed: int = 0, fps: float = 2.0) -> list[Frame]:
    rng = np.random.default_rng(seed)
    return [Frame(i / fps, rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)) for i in range(count)]


@pytest.mark.parametrize("threshold", [0.0, 0.003, 1.0])
@pytest.mark.parametrize("layers", ["interleaved", "all", "none"])
def test_a_stream_equals_one_pass_over_all_it_read(
    threshold: float, layers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model(layers=layers)
    session = Session(model, threshold=threshold)
    recorder = Recorder(monkeypatch)
    session.ask("What is in view?", time=1.0)
    session.ask("What left?", time=1.2)
    for frame in frames(6):
        session.step(frame)
    session.ask("And now?")
    session.finish()
    ids, steps = torch.tensor([recorder.ids]), dict(recorder.last)
    with torch.inference_mode():
        whole = model(ids, pixel_values=torch.cat(recorder.pixels)).logits[0]
    positions = sorted(position for position in steps if position < ids.shape[1])
    stepped = torch.stack([steps[position] for position in positions])
    torch.testing.assert_close(stepped, whole[positions], atol=1e-4, rtol=0)
    assert len(positions) >= 6


@given(
    count=st.integers(1, 24),
    together=st.integers(2, 9),
    asked=st.lists(st.sampled_from([0.0, 0.75, 2.0, 3.3]), max_size=2),
    router=st.sampled_from(["top_k", "threshold", "p_mod", "full"]),
    threshold=st.sampled_from([0.0, 0.0034, 1.0]),
    context=st.sampled_from([420, 4096]),
    marker=st.sampled_from(["", "\n"]),
)
@settings(max_examples=25, deadline=None)
def test_frames_that_are_read_together_say_what_they_say_one_by_one(
    count: int, together: int, asked: list[float], router: str, threshold: float, context: int, marker: str
) -> None:
    model = small_model(router=router)
    model.config.context_tokens, model.config.cut_marker = context, marker
    seen = frames(count)
    stream = [replace(frame, pixels=seen[index // 2].pixels) for index, frame in enumerate(seen)]
    alone, chunked = (Session(model, threshold=threshold) for _ in range(2))
    for session in (alone, chunked):
        for time in asked:
            session.ask("What left?", time)
    one_by_one = [event for frame in stream for event in alone.step(frame)]
    chunks = [stream[at : at + together] for at in range(0, count, together)]
    assert [event for chunk in chunks for event in chunked.step(*chunk)] == one_by_one
    assert chunked.seen_tokens == alone.seen_tokens and chunked.cache_bytes == alone.cache_bytes
    for session in (alone, chunked):
        session.ask("And now?")
    assert chunked.finish() == alone.finish()


def test_threshold_zero_is_silent_and_one_always_speaks(tiny: VideoLLM) -> None:
    silent, talker = Session(tiny, threshold=0.0), Session(tiny, threshold=1.0)
    for frame in frames(4):
        assert silent.step(frame) == []
        events = talker.step(frame)
        assert [(event.kind, event.time) for event in events] == [("narration", frame.time)]


def test_questions_are_answered_at_their_own_time(tiny: VideoLLM) -> None:
    session = Session(tiny, threshold=0.0)
    session.ask("later", time=1.25)
    session.ask("at once", time=0.5)
    session.ask("never reached", time=60)
    said = [event for frame in frames(5) for event in session.step(frame)]
    assert [(e.kind, e.time) for e in said] == [
        ("question", 0.5), ("answer", 0.5), ("question", 1.25), ("answer", 1.25)
    ]  # fmt: skip
    assert [e.text for e in said if e.kind == "question"] == ["at once", "later"]
    last = session.finish()
    assert [(e.kind, e.time) for e in last] == [("question", 60), ("answer", 60)]
    assert session.finish() == []


def test_an_answer_knows_nothing_of_later_frames(tiny: VideoLLM) -> None:
    def answer(stream: list[Frame]) -> str:
        session = Session(tiny, threshold=0.0)
        session.ask("What is in view?", time=1.25)
        said = [event for frame in stream for event in session.step(frame)]
        return next(event.text for event in said if event.kind == "answer")

    same, other = frames(6), frames(6)
    other[4:] = frames(2, seed=9, fps=2)
    other[4], other[5] = Frame(2.0, other[4].pixels), Frame(2.5, other[5].pixels)
    assert answer(same) == answer(other)


def test_reset_begins_anew(tiny: VideoLLM) -> None:
    session = Session(tiny, threshold=1.0)
    first = [session.step(frame) for frame in frames(3)]
    session.ask("forgotten", time=9)
    session.reset()
    assert session.seen_tokens == 0 and session.cache_bytes == 0
    assert [session.step(frame) for frame in frames(3)] == first
    assert session.finish() == []


def test_what_was_said_elsewhere_is_read_as_if_it_had_been_here(
    tiny: VideoLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder, session = Recorder(monkeypatch), Session(tiny, threshold=0.0)

    def recount(question: str | None, answer: str) -> None:
        assert session.engine.run(session.slot, session.recounting(question, answer)) == []

    one, two = frames(2)
    recount("Ready?", "Yes.")
    session.step(one)
    recount(None, "A cat.")
    recount("And?", "A cup.")
    session.step(two)
    session.ask("What?")
    session.finish()
    text = [
        "Watch.\n\nUser: Ready?\nAssistant: Yes.<eos>\n[",
        "]\nAssistant: A cat.<eos>\nUser: And?\nAssistant: A cup.<eos>\n[",
        "]\nUser: What?\nAssistant:",
    ]
    before, between, after = (tiny.tokenizer(part, add_special_tokens=False)["input_ids"] for part in text)
    bos, frame = [tiny.tokenizer.bos_token_id], session.prompt.frame
    expected = [*bos, *before, *frame, *between, *frame, *after]
    assert recorder.ids[: len(expected)] == expected


def test_what_was_said_elsewhere_may_fill_the_context_but_not_at_once(
    tiny: VideoLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny.config, "context_tokens", 400)
    session, notices = Session(tiny, threshold=0.0), []
    for index, frame in enumerate(frames(20)):
        notices += session.step(frame)
        notices += session.engine.run(session.slot, session.recounting(f"{index}?", 20 * "!"))
        assert session.seen_tokens <= 400
    assert {notice.kind for notice in notices} == {"notice"} and "is forgotten" in notices[0].text
    with pytest.raises(ValueError, match=r"too long: \d+ tokens, and 100 are the most"):
        session.recounting("Why?", 100 * "!")


def test_sessions_share_a_model_and_nothing_else(tiny: VideoLLM) -> None:
    def alone(seed: int) -> list:
        session = Session(tiny, threshold=1.0)
        return [session.step(frame) for frame in frames(3, seed)]

    one, two = Session(tiny, threshold=1.0), Session(tiny, threshold=1.0)
    mixed = [(one.step(a), two.step(b)) for a, b in zip(frames(3, 1), frames(3, 2), strict=True)]
    assert [a for a, _ in mixed] == alone(1)
    assert [b for _, b in mixed] == alone(2)


@pytest.mark.parametrize("threshold", [0.0, 0.0036, 1.0])
def test_a_full_context_begins_anew_with_the_latest_moments(
    threshold: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model()
    model.config.context_tokens = 600
    session = Session(model, threshold=threshold)
    recorder = Recorder(monkeypatch)
    session.ask("First?", time=0.0)
    session.ask("Later?", time=11.3)
    contexts, said = 0, []
    for frame in frames(60):
        said += session.step(frame)
        assert session.seen_tokens <= 600
        if session.seen_tokens < len(recorder.ids):  # a new context began within this step
            recorder.forget(len(recorder.ids) - session.seen_tokens)
            contexts += 1
    assert contexts > 0
    # What stands in the new context is one sequence like any other: one pass over it gives the same.
    ids, steps = torch.tensor([recorder.ids]), dict(recorder.last)
    with torch.inference_mode():
        whole = model(ids, pixel_values=torch.cat(recorder.pixels)).logits[0]
    stepped = torch.stack(list(steps.values()))
    torch.testing.assert_close(stepped, whole[list(steps)], atol=1e-4, rtol=0)
    assert [e.text for e in said if e.kind == "question"] == ["First?", "Later?"]
    session.ask("Still there?")
    assert [event.kind for event in session.finish()] == ["question", "answer"]


def test_moments_come_back_with_their_words_and_lost_ones_are_told(
    tiny: VideoLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.config.context_tokens = 700
    session = Session(tiny, threshold=0.0)
    session.ask("Do you remember?", time=0.0)
    recorder = Recorder(monkeypatch)
    stream = frames(200)
    events = [event for frame in stream[:90] for event in session.step(frame)]
    assert [event.kind for event in events] == ["question", "answer"]  # nothing lost, nothing told
    text = session.prompt.tokenizer.decode([token for token in recorder.ids if token < 256])
    assert text.count("Do you remember?") > 1
    session.threshold = 1.0
    events = [event for frame in stream[90:120] for event in session.step(frame)]
    notices = [event.text for event in events if event.kind == "notice"]
    assert notices and notices[0].startswith("The context is full: what was before 00:")


def test_a_question_that_would_fill_the_context_is_refused(tiny: VideoLLM) -> None:
    tiny.config.context_tokens = 400
    with pytest.raises(ValueError, match=r"too long: .* tokens, and 100 are the most"):
        Session(tiny).ask("why " * 60)


def test_the_room_has_its_session_at_the_door() -> None:
    import stream

    assert stream.Session is Session


def test_an_empty_question_is_refused(tiny: VideoLLM) -> None:
    with pytest.raises(ValueError, match="empty"):
        Session(tiny).ask("  ")


def test_a_reply_is_heard_word_by_word(tiny: VideoLLM) -> None:
    session, heard = Session(tiny, threshold=1.0), []
    session.on_text = heard.append
    (event,) = session.step(frames(1)[0])
    assert heard[-1] == event.text
    assert [len(text) for text in heard] == sorted(len(text) for text in heard) and len(heard) > 1


def test_a_system_prompt_takes_the_place_of_the_models_own(tiny: VideoLLM) -> None:
    own, same, other = (
        Session(tiny, threshold=1.0, system_prompt=prompt).step(frames(1)[0])
        for prompt in (None, tiny.config.system_prompt, "Be brief.")
    )
    assert own == same != other
    with pytest.raises(ValueError, match="system prompt is too long"):
        Session(tiny, system_prompt="why " * 4096)
