"""A dialogue is trained on as a session reads it: the same ids, and targets where the session decides."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import small_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rehearsal import Rehearsal

from stream import engine
from stream.frames import Frame
from stream.session import Session
from train.data.annotations import Dialogue, Turn
from train.data.dialogue_sequence import dialogue_sequence
from train.sequences import IGNORED, LossWeights
from videollm.prompt import Prompt

FPS = 2.0
MODEL = small_model()
PROMPT = Prompt.of(MODEL.tokenizer, MODEL.config)


def frames(count: int) -> np.ndarray:
    """Frame i is full of i, [count, 10, 4]."""
    return np.broadcast_to(np.arange(count, dtype=np.float16)[:, None, None], (count, 10, 4))


def said(time: float, text: str) -> Turn:
    return Turn(time, "assistant", text)


moments = st.floats(0, 4.5).map(lambda time: round(time, 2))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    narrated=st.lists(moments, max_size=4, unique_by=lambda time: np.ceil(time * FPS)),
    asked=st.lists(moments, max_size=3, unique=True),
)
def test_the_session_reads_what_is_trained(
    narrated: list[float], asked: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = [said(time, f"N{number}.") for number, time in enumerate(narrated)]
    for number, time in enumerate(asked):
        turns += [Turn(time, "user", f"Q{number}?"), said(time, f"A{number}.")]
    # A narration at a question's time comes first; a question keeps its answer behind it.
    turns.sort(key=lambda turn: turn.time)
    sequence = dialogue_sequence(PROMPT, Dialogue("clip", 0, 4.5, tuple(turns)), frames(10), FPS)

    rehearsal, session = Rehearsal(sequence), Session(MODEL)
    monkeypatch.setattr(engine, "read", rehearsal.read)
    for number, time in enumerate(asked):
        session.ask(f"Q{number}?", time)
    events = [
        event
        for index in range(10)
        for event in session.step(Frame(index / FPS, np.zeros((4, 4, 3), np.uint8)))
    ]
    events += session.finish()
    assert rehearsal.fed == sequence.ids[: len(rehearsal.fed)]
    assert len(sequence.ids) - len(rehearsal.fed) <= 1, "only the last reply's end is never read"
    told = [(event.time, event.text) for event in events if event.kind == "narration"]
    assert told == sorted((np.ceil(time * FPS) / FPS, f"N{n}.") for n, time in enumerate(narrated))
    answers = [(event.time, event.text) for event in events if event.kind == "answer"]
    assert answers == sorted((time, f"A{n}.") for n, time in enumerate(asked))


def test_frames_of_the_dialogues_part_alone() -> None:
    """From 1 to 3 s: what is said between two frames is said of the later one, and the end of what is learned
    is the end of the sequence."""
    dialogue = Dialogue("clip", 1.0, 3.0, (said(1.6, "A cat."), said(1.9, "It sits."), said(3.0, "It goes.")))
    weights = LossWeights(words=0.5, silent=1.0, speak=3.0)
    sequence = dialogue_sequence(PROMPT, dialogue, frames(20), FPS, weights)
    assert [int(picture[0, 0]) for picture in sequence.pictures] == [2, 3, 4, 5, 6]
    ends = [at for at, target in enumerate(sequence.targets) if target in (PROMPT.interval, PROMPT.stop)]
    ends = [at for at in ends if sequence.ids[at] == PROMPT.frame[0]]
    decided = [sequence.targets[at] == PROMPT.stop for at in ends]
    assert decided == [False, False, True, False, True]
    assert [sequence.weights[at] for at in ends] == [1.0, 1.0, 3.0, 1.0, 3.0]
    learned = {at for at, target in enumerate(sequence.targets) if target != IGNORED}
    words = {sequence.weights[at] for at in learned - set(ends)}
    assert words == {0.5}
    text = PROMPT.tokenizer.decode([token for token in sequence.ids if token < 300])
    assert "Assistant: A cat. It sits.<eos>" in text


@pytest.mark.parametrize(
    ("dialogue", "complaint"),
    [
        (Dialogue("clip", 30.0, 40.0, ()), "clip: no frame between 30 s and 40 s"),
        (Dialogue("clip", 0.0, 40.0, (said(12.0, "Late."),)), "clip: a turn at 12 s"),
        (Dialogue("clip", 2.0, 4.0, (said(0.5, "Early."),)), "clip: a turn at 0.5 s"),
        (Dialogue("clip", 0.0, 4.0, (Turn(1.0, "user", "What?"),)), "question at 1 s isn't answered"),
        (
            Dialogue("clip", 0.0, 4.0, (Turn(1.0, "user", "What?"), said(2.0, "That."))),
            "question at 1 s isn't answered",
        ),
    ],
)
def test_what_no_session_could_say_is_refused(dialogue: Dialogue, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        dialogue_sequence(PROMPT, dialogue, frames(20), FPS)
