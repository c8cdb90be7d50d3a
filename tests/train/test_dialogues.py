"""Dialogues from annotation: what is said when, and answers that the annotation bears out."""

import math
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
from conftest import small_model
from hypothesis import given, settings
from hypothesis import strategies as st

from train.data import questions
from train.data.annotations import AnnotatedVideo, Dialogue, Segment, Turn
from train.data.dialogue_sequence import dialogue_sequence
from train.data.dialogues import narration_dialogues, question_dialogues, read_dialogues, write_dialogues
from train.data.questions import KINDS, Known
from videollm.prompt import Prompt

MODEL = small_model()
PROMPT = Prompt.of(MODEL.tokenizer, MODEL.config)

COOKING = AnnotatedVideo(
    "cooking",
    (
        Segment(1.2, "C opens the fridge"),
        Segment(3.0, "C takes an egg."),
        Segment(3.4, "C takes a pan"),
        Segment(3.5, "C closes  the fridge"),
        Segment(4.1, "c closes the fridge"),
        Segment(9.9, "C breaks the egg"),
    ),
    duration=9.0,
)
STEPS = AnnotatedVideo(
    "steps",
    (
        Segment(2.0, "unscrew the screw", 5.0),
        Segment(6.0, "jack up the car", 14.0),
        Segment(15.0, "remove the tire", 20.0),
    ),
)


def said(dialogue: Dialogue) -> list[tuple[float, str, str]]:
    return [(turn.time, turn.role, turn.text) for turn in dialogue.turns]


def test_a_narration_is_said_at_the_first_frame_at_or_after_its_time() -> None:
    (dialogue,) = narration_dialogues([COOKING], fps=2, window=60)
    assert (dialogue.video, dialogue.start, dialogue.end) == ("cooking", 0.0, 8.5)
    assert said(dialogue) == [
        (1.5, "assistant", "C opens the fridge."),
        (3.0, "assistant", "C takes an egg."),
        (3.5, "assistant", "C takes a pan. C closes the fridge."),
        (8.5, "assistant", "C breaks the egg."),  # the last frame that nine seconds surely have
    ]


def test_windows_follow_each_other_from_the_first_narration_and_gaps_are_left_out() -> None:
    video = AnnotatedVideo("v", tuple(Segment(time, f"at {time}") for time in (10, 11, 14, 40)))
    dialogues = narration_dialogues([video], fps=1, window=4)
    assert [(each.start, each.end, len(each.turns)) for each in dialogues] == [
        (10, 13, 2),
        (14, 17, 1),
        (38, 40, 1),
    ]


def test_a_window_shorter_than_a_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="holds no frame"):
        narration_dialogues([COOKING], fps=2, window=0.4)


@pytest.mark.parametrize(
    ("time", "kind", "answer"),
    [
        (7.0, "now", "Jack up the car."),
        (5.5, "now", None),
        (7.0, "before", "Unscrew the screw."),
        (4.0, "before", None),
        (7.0, "next", "Remove the tire."),
        (16.0, "next", None),
        (1.0, "next", None),
        (7.0, "first", "Unscrew the screw."),
        (1.0, "first", None),
        (14.0, "how long", "About 8 seconds."),
        (4.0, "how long", None),
        (16.0, "summary", "First: Unscrew the screw. Then: Jack up the car. Then: Remove the tire."),
        (4.0, "summary", None),
    ],
)
def test_answers_worked_by_hand(time: float, kind: str, answer: str | None) -> None:
    assert KINDS[kind].answer(Known.at(time, 0.0, STEPS)) == answer


def test_what_was_not_watched_is_not_answered_from() -> None:
    known = Known.at(16.0, 10.0, STEPS)  # the jacking was under way when watching began
    assert KINDS["first"].answer(known) is None
    assert KINDS["before"].answer(known) is None
    assert KINDS["now"].answer(known) == "Remove the tire."


def annotated() -> st.SearchStrategy[AnnotatedVideo]:
    times = st.tuples(st.integers(0, 400), st.none() | st.integers(1, 100))
    return st.lists(times, min_size=1, max_size=12).map(
        lambda drawn: AnnotatedVideo(
            "v",
            tuple(
                Segment(start / 10, f"Thing {number}", None if length is None else (start + length) / 10)
                for number, (start, length) in enumerate(sorted(drawn, key=lambda each: each[0]))
            ),
        )
    )


@given(annotated(), st.sampled_from([1.0, 2.0, 3.0, 12.5]), st.integers(1, 60), st.integers(0, 3))
def test_every_thing_is_said_once_in_time_and_questions_are_answered_at_once(
    video: AnnotatedVideo, fps: float, window: float, seed: int
) -> None:
    plain = narration_dialogues([video], fps, window)
    narrated = {turn.time: turn.text for dialogue in plain for turn in dialogue.turns}
    for segment in video.segments:
        (time,) = [time for time, text in narrated.items() if f"{segment.text}." in text]
        assert segment.start <= time + 1e-6 < segment.start + 1 / fps + 2e-6
    asked = question_dialogues([video], fps, window, 3, seed)
    assert asked == question_dialogues([video], fps, window, 3, seed)
    for before, dialogue in zip(plain, asked, strict=True):
        assert dialogue.end - dialogue.start < window
        assert [turn.time for turn in dialogue.turns] == sorted(turn.time for turn in dialogue.turns)
        left = list(dialogue.turns)
        while left:
            turn = left.pop(0)
            assert dialogue.start <= turn.time <= dialogue.end
            if turn.role == "user":
                answer = left.pop(0)
                assert (answer.time, answer.role) == (turn.time, "assistant")
            else:
                assert turn in before.turns


@given(annotated(), st.integers(0, 450), st.integers(0, 450), st.integers(0, 9))
def test_answers_tell_only_what_is_true_at_their_time(
    video: AnnotatedVideo, began: int, watched: int, seed: int
) -> None:
    time = (began + watched) / 10
    pair = questions.ask(Random(seed), time, began / 10, video)
    if pair is None:
        return
    question, answer = pair
    (kind,) = [name for name, kind in KINDS.items() if question in kind.wordings]
    told = [segment for segment in video.segments if f"{segment.text}." in answer]
    if kind == "how long":
        return
    assert told
    for segment in told:
        end = segment.start + questions.MOMENT if segment.end is None else segment.end
        if kind == "next":
            assert segment.start == min(each.start for each in video.segments if each.start > time)
            continue
        assert segment.start <= time
        if kind == "now":
            assert time < end
        else:
            assert segment.start >= began / 10
        if kind == "before":
            assert end <= time


@settings(deadline=None, max_examples=40)
@given(annotated(), st.integers(1, 100), st.sampled_from([1.0, 2.0, 3.0]), st.integers(0, 3))
def test_every_dialogue_is_a_sequence_over_the_frames_there_are(
    video: AnnotatedVideo, more: int, fps: float, seed: int
) -> None:
    duration = max(1.0, video.segments[-1].start + more / 10)
    count = math.floor(duration * fps)
    frames = np.zeros((count, 10, 4), np.float16)
    for dialogue in question_dialogues([replace(video, duration=duration)], fps, 20, 3, seed):
        sequence = dialogue_sequence(PROMPT, dialogue, frames, fps)
        assert len(sequence.pictures) == round((dialogue.end - dialogue.start) * fps) + 1
        read = MODEL.tokenizer.decode(sequence.ids)
        assert all(turn.text in read for turn in dialogue.turns)


def test_dialogues_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "dialogues.jsonl"
    dialogues = question_dialogues([COOKING, STEPS], 2, 6, 2, seed=3)
    assert any(turn.role == "user" for dialogue in dialogues for turn in dialogue.turns)
    write_dialogues(path, dialogues)
    assert read_dialogues(path) == dialogues
    path.write_text('{"video": "v", "start": 0, "end": 1, "turns": [{"time": 0}]}\n')
    with pytest.raises(ValueError, match=r"dialogues.jsonl, line 1: .*role"):
        read_dialogues(path)


def test_as_many_questions_are_asked_as_were_wanted() -> None:
    (dialogue, *_) = question_dialogues([STEPS], 2, 60, 5, seed=0)
    assert sum(turn.role == "user" for turn in dialogue.turns) == 5
    assert Turn(2.0, "assistant", "Unscrew the screw.") in dialogue.turns
