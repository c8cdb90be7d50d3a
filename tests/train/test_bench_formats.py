"""What benchmarks ask, and how answers to them count, by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import small_model
from PIL import Image

from stream.frames import Event, Frame
from stream.session import Session
from train.data import coin_tasks
from train.data.annotations import AnnotatedVideo, Segment
from train.evaluation import ovo_bench, streaming_bench
from train.evaluation.anticipation import FUTURE, AnticipationBench, Taxonomy, dialogue_of, examples
from train.evaluation.coin import right_steps
from train.evaluation.streamed import choice, says_letter
from train.evaluation.watching import answer
from train.metrics.captions import answers_of


def said(text: str) -> list[Event]:
    return [Event(3.0, "question", "What?"), Event(3.0, "answer", text)]


STEPS = tuple(Segment(10.0 * n, f"step {n}", 10.0 * n + 5) for n in range(7))
VIDEO = AnnotatedVideo("v", STEPS, 70.0, "testing", "make tea")


def test_coin_asks_what_the_paper_asks() -> None:
    asked = {task: coin_tasks.questions(task, [VIDEO]) for task in coin_tasks.TASKS}
    assert {task: len(of) for task, of in asked.items()} == {
        "step": 7, "next": 6, "task": 1, "procedure": 6, "procedure+": 6,
    }  # fmt: skip
    # Shown is the step's part; asked is at its end.
    second = asked["next"][1].dialogue
    assert (second.start, second.end, second.turns[0].time) == (10.0, 15.0, 15.0)
    assert second.turns[1].text == "Step 2." and asked["step"][1].steps == ("Step 1.",)
    whole = asked["task"][0].dialogue
    assert (whole.start, whole.end, whole.turns[1].text) == (0.0, 65.0, "Make tea.")
    # At most five steps are asked for, and before the last one of them is left.
    assert [len(a.steps) for a in asked["procedure"]] == [5, 5, 4, 3, 2, 1]
    assert asked["procedure"][3].dialogue.turns[1].text == "1. Step 4.\n2. Step 5.\n3. Step 6."
    assert asked["procedure+"][0].dialogue.turns[0].text.startswith("The aim is to make tea. ")
    assert coin_tasks.labels("task", [VIDEO]) == ["Make tea."]
    with pytest.raises(ValueError, match="no task 'cook'"):
        coin_tasks.questions("cook", [VIDEO])


def test_steps_count_in_their_place() -> None:
    labels = ["Drink.", "Pour milk.", "Stir."]
    assert right_steps("stir", ("Stir.",), labels) == 1
    # The first and the third are right, what is said too much counts nothing.
    assert (
        right_steps("1. Pour milk\n2. Drink\n3) Stir.\n4. Drink.", ("Pour milk.", "Stir.", "Stir."), labels)
        == 2
    )
    assert right_steps("", ("Pour milk.", "Stir."), labels) == 0


def test_anticipation_shows_eight_actions_and_asks_for_twenty() -> None:
    actions = tuple(Segment(float(n), f"take cup {n}", n + 0.8) for n in range(30))
    places = examples(AnnotatedVideo("v", actions))
    assert len(places) == 3 and [len(part) for part in places[1]] == [8, 20]
    dialogue = dialogue_of(VIDEO, *places[1])
    assert (dialogue.start, dialogue.end) == (1.0, 8.8)
    assert dialogue.turns[1].text.splitlines()[0] == "1. Take cup 9."
    assert not examples(AnnotatedVideo("v", actions[:27]))


def test_a_said_list_becomes_twenty_actions() -> None:
    bench = AnticipationBench.__new__(AnticipationBench)
    bench._taxonomy = Taxonomy.of(["take_(pick,_grab)", "turn_on_(switch_on)"], ["cup", "stove_(hob)"])
    sequence = bench.sequence("Of course:\n1. Turn on stov.\n2. take cup\nand so on")
    assert sequence == [("turn on", "stove")] + [("take", "cup")] * (FUTURE - 1)
    assert bench.sequence("nothing") == [("take", "cup")] * FUTURE


def test_a_file_of_another_kind_is_no_taxonomy(tmp_path: Path) -> None:
    (tmp_path / "file.json").write_text("[]")
    with pytest.raises(ValueError, match="no taxonomy"):
        Taxonomy.read(tmp_path / "file.json")


@pytest.mark.parametrize(
    ("text", "right"),
    [("B", True), ("B.", True), ("(B) dog", True), ("The answer is B.", True), ("b", False), ("", False),
     ("A", False), ("A dog, so B.", True), ("Bananas", False), ("C, not B", False)],
)  # fmt: skip
def test_a_letter_is_an_answer_only_as_one(text: str, right: bool) -> None:
    assert says_letter("B")(said(text)) is right


def test_options_get_letters_where_they_have_none() -> None:
    expected = "What? A. cat B. dog Answer with the letter alone."
    assert choice("What?", ["cat", "dog"]) == choice("What?", ["A. cat", "B. dog"]) == expected


def write(folder: Path, entries: object) -> Path:
    path = folder / "file.json"
    path.write_text(json.dumps(entries))
    return path


def test_ovo_bench_counts(tmp_path: Path) -> None:
    tests = [{"realtime": 5, "type": 0, "step": "pour"}, {"realtime": 9, "type": 1, "step": "pour"}]
    entries = [
        {
            "id": 1,
            "task": "ASI",
            "video": "v",
            "question": "?",
            "options": ["x", "y"],
            "gt": 1,
            "realtime": 4,
        },
        {
            "id": 2,
            "task": "REC",
            "video": "v",
            "activity": "hop",
            "test_info": [{"realtime": 7, "count": 12}],
        },
        {"id": 3, "task": "SSR", "video": "v", "test_info": tests},
    ]
    asi, rec, early, late = ovo_bench.read(write(tmp_path, entries))
    assert [q.time for q in (asi, rec, early, late)] == [4, 7, 5, 9]
    assert asi.is_right(said("B")) and not asi.is_right(said("A"))
    assert rec.is_right(said("12 times")) and not rec.is_right(said("2"))
    assert early.is_right(said("No.")) and early.is_right(said("N")) and not early.is_right(said("Not sure"))
    assert late.is_right(said("yes, now")) and not late.is_right(said("No"))


BROKEN: list[tuple[Any, str]] = [
    ({"id": 0}, "not OVO-Bench's annotation"),
    ([{"id": 0, "task": "XYZ", "video": "v"}], "entry 0: there is no task 'XYZ'"),
    ([{"id": 0, "task": "EPM", "video": "v"}], "entry 0: EPM needs"),
    ([{"task": "EPM", "video": "v", "question": "?", "options": ["x"], "gt": 1, "realtime": 2}], "gt is 1"),
]


@pytest.mark.parametrize(("entries", "told"), BROKEN)
def test_a_broken_entry_is_named(entries: object, told: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=told):
        ovo_bench.read(write(tmp_path, entries))


def test_streaming_bench_counts(tmp_path: Path) -> None:
    options: Any = ["A.cat", "B.dog", "C.owl", "D.cup"]
    chosen: dict[str, Any] = {
        "task_type": "Counting",
        "question": "?",
        "time_stamp": "00:01:30",
        "answer": "C",
        "options": options,
    }
    told = {"task_type": "Proactive Output", "question": "Say so.", "time_stamp": "01:00", "answer": ""}
    told |= {"ground_truth_time_stamp": "00:01:10", "ground_truth_output": "now"}
    part = {"video_path": "./videos/sample_7.mp4", "questions": [chosen, told]}
    first, second = streaming_bench.read(write(tmp_path, [part]))
    assert (first.video, first.time, first.category) == ("sample_7.mp4", 90.0, "Counting")
    assert first.is_right(said("C"))
    assert second.until == 120.0
    in_time, late = ([Event(time, "narration", "now")] for time in (72.0, 72.5))
    assert second.is_right(in_time) and not second.is_right(late) and not second.is_right([])
    with pytest.raises(ValueError, match="'soon' is no moment"):
        streaming_bench.read(
            write(tmp_path, [{"video_path": "v", "questions": [chosen | {"time_stamp": "soon"}]}])
        )


def test_a_narration_answers_the_moment_it_belongs_to() -> None:
    true = [(1.0, "cat"), (4.0, "dog"), (9.0, "owl")]
    heard = [(1.5, "a cat"), (2.0, "still a cat"), (3.5, "a dog"), (20.0, "an owl")]
    # The second of two, and one eleven seconds late, answer nothing.
    assert answers_of(true, heard) == (["a cat", "a dog", ""], 2)


def test_a_session_answers_behind_pictures_and_clips() -> None:
    session = Session(small_model(), threshold=0.0)
    clip = Path(__file__).parents[2] / "assets" / "sample.mp4"
    picture = Image.fromarray(np.full((40, 60, 3), 128, np.uint8))
    first = answer(session, [picture], "What?", 1.0)
    alone = Session(small_model(), threshold=0.0)
    alone.step(Frame(0.0, np.full((40, 60, 3), 128, np.uint8)))
    alone.ask("What?")
    assert first == alone.finish()[-1].text
    seen = session.seen_tokens
    answer(session, [str(clip), picture], "What?", 1.0)
    assert session.seen_tokens > seen and session.time > 10
    assert answer(session, [picture], "What?", 1.0) == first  # nothing stays of what was shown before
