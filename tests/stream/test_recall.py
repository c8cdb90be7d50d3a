"""Recall: where in time a question looks, which moments it finds, and how a session answers from them."""

from __future__ import annotations

import io
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Recorder, small_model, text_config, vision_config
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stream.engine import Engine
from stream.frames import Event, Evidence, Frame
from stream.journal import Journal, JournalReader
from stream.journal.writer import Keepsake
from stream.recall import MOST_MOMENTS, recall
from stream.session import Session
from stream.timewords import time_words
from videollm import VideoLLM, VideoLLMConfig
from videollm.budgets import Budgets
from videollm.configuration import ConnectorConfig
from videollm.eviction import POLICIES
from videollm.signature import FULL, LEAST, frame_signatures, question_signature, signature_space

NOW = 7200.0
LABELS = ["tiger cat", "cup", "grapes", "nothing"]


# Time words


@pytest.mark.parametrize(
    ("question", "rest", "start", "end"),
    [
        ("What was in view at 01:12:40?", "What was in view?", 4360, 4360.999),
        ("At 0:05.5, where was the cat?", "Where was the cat?", 5.5, 5.5),
        ("What was there ten minutes ago?", "What was there?", 6600, 6600),
        ("What was in view half an hour ago?", "What was in view?", 5400, 5400),
        ("a couple of minutes ago, was there a cat?", "Was there a cat?", 7080, 7080),
        ("What was in view 3 hours ago?", "What was in view?", 0, 0),
        ("What was in view before 00:30?", "What was in view?", 0, 29.999),
        ("At minute 3 what was in view?", "What was in view?", 180, 180.999),
    ],
)
def test_an_instant_is_where_it_is_said_to_be(question: str, rest: str, start: float, end: float) -> None:
    words = time_words(question, NOW)
    assert words.instant and words.named
    assert (words.rest, words.start, words.end) == (rest, pytest.approx(start), pytest.approx(end))


@pytest.mark.parametrize(
    ("question", "start", "end", "order"),
    [
        ("What happened between 2:00 and 1:00?", 60, 120.999, None),
        ("What left in the last half an hour?", 5400, NOW, None),
        ("What left during the last minute?", 7140, NOW, None),
        ("Was there a cat in the first 30 seconds?", 0, 30, None),
        ("What came after 1:00?", 60.999, math.inf, "first"),
    ],
)
def test_a_stretch_is_where_it_is_said_to_be(
    question: str, start: float, end: float, order: str | None
) -> None:
    words = time_words(question, NOW)
    assert words.named and not words.instant
    assert (words.start, words.end, words.order) == (pytest.approx(start), pytest.approx(end), order)


@pytest.mark.parametrize(
    ("question", "order"),
    [
        ("What came first?", "first"),
        ("What was in view in the beginning?", "first"),
        ("When did I last see the cup?", "last"),
        ("What was there at the end?", "last"),
        ("Where is the cup?", None),
        ("What is 1:75?", None),
        ("Is the firstborn there?", None),
    ],
)
def test_first_and_last_are_heard(question: str, order: str | None) -> None:
    words = time_words(question, NOW)
    assert words.order == order and not words.named


def test_before_and_after_something_are_heard() -> None:
    assert time_words("What came before the cup left?", NOW).before == "the cup left"
    assert time_words("What came after the cup?", NOW).after == "the cup"
    assert time_words("Was it there before?", NOW).before is None


@given(st.text(alphabet="0123456789:. agominutsfrelc", max_size=40) | st.text(max_size=40))
@settings(max_examples=200, deadline=None)
def test_any_question_has_time_words_that_make_sense(question: str) -> None:
    words = time_words(question, NOW)
    assert words.end >= 0 and words.start >= 0


def test_a_time_beyond_all_numbers_is_no_crash() -> None:
    for question in (f"at {'9' * 5000}:00?", f"at {'9' * 400}:00?", f"{'9' * 400} hours ago?"):
        assert time_words(question, NOW).start >= 0


# Names


def naming_model() -> VideoLLM:
    torch.manual_seed(0)
    connector = ConnectorConfig(kind="class_names", groups=[1, 3], labels=LABELS)
    config = VideoLLMConfig(
        text_config=text_config(),
        vision_config=vision_config(),
        connector_config=connector,
        system_prompt="Watch.",
    )
    model = VideoLLM(config).eval()
    model.tokenizer = small_model().tokenizer
    return model


def test_a_signature_is_the_largest_share_of_each_class() -> None:
    model = naming_model()
    frames = torch.randint(0, 256, (3, 3, 1, 1), dtype=torch.uint8).expand(3, 3, 32, 32)
    with torch.inference_mode():
        for weight in model.connector.classifier.parameters():
            weight.mul_(50)  # decided, as one that is trained: little of most classes
        shares = model.connector.shares(model.connector.classifier(model.vision_tower(frames)))
    signatures = frame_signatures(model, frames)
    assert signatures.dtype == np.int8 and signatures.shape == (3, 4)
    most = shares.amax(1).numpy()
    plain = most * FULL >= LEAST
    assert plain.any() and not plain.all()
    np.testing.assert_allclose(signatures / FULL, np.where(plain, most, 0), atol=0.5 / FULL + 1e-6)
    assert frame_signatures(small_model(), frames).shape == (3, 0)
    assert signature_space(model) != signature_space(small_model())


@pytest.mark.parametrize(
    ("question", "asked"),
    [
        ("Where was the cup?", {"cup": 1.0}),
        ("Were there CUPS?", {"cup": 1.0}),
        ("Was the cat there?", {"tiger cat": 0.8}),
        ("tiger cat", {"tiger cat": 1.0}),
        ("a grape", {"grapes": 1.0}),
        ("a cupboard", None),
        ("", None),
    ],
)
def test_a_question_asks_for_the_classes_that_it_names(question: str, asked: dict[str, float] | None) -> None:
    weights = question_signature(naming_model(), question)
    if asked is None:
        assert weights is None
    else:
        assert weights is not None
        found = {LABELS[index]: float(weights[index]) for index in np.flatnonzero(weights)}
        assert found == pytest.approx(asked)


# Moments


def shows(time: float, model: VideoLLM, said: bool = False, **shares: float) -> Keepsake:
    signature = np.array([shares.get(label, 0) * FULL for label in LABELS]).astype(np.int8)
    picture = np.full((32, 32, 3), int(time) % 256, np.uint8)
    jpeg = io.BytesIO()
    Image.fromarray(picture).save(jpeg, "JPEG")
    return Keepsake(time, said, jpeg.getvalue(), signature_space(model), signature)


@pytest.fixture
def kitchen(tmp_path: Path) -> Iterator[Journal]:
    """A pan, a cup that is seen at 60 s without a word and told of at 100 s, a knife, an hour of nothing."""
    model = naming_model()
    with Journal(tmp_path / "kitchen.db") as journal:
        told = {
            10: "A pan is in view.",
            100: "A cup appears on the left.",
            130: "The cup leaves.",
            200: "A knife appears.",
        }
        for time in range(0, 260, 10):
            events = [Event(time, "narration", told[time])] if time in told else []
            cup = 0.9 if time in (100, 110) else 0.5 if time == 60 else 0.0
            journal.record(events, [shows(time, model, bool(events), cup=cup)])
        journal.record([Event(255, "answer", "There was a cup.", (Evidence(100, "A cup appears."),))])
        journal.record([Event(3600, "narration", "It is dark.")], [shows(3600, model, said=True)])
        yield journal


@pytest.mark.parametrize(
    ("question", "as_then", "times"),
    [
        ("Where was the cup?", "Where is the cup?", [60, 100]),
        ("When did the cup leave?", "When do the cup leave?", [60, 100, 110, 130]),
        ("Where is the knife?", "Where is the knife?", [200]),
        ("What came first?", "What came first?", [10]),
        ("What was in view in the beginning?", "What is in view?", [10]),
        ("What was in view at 00:45?", "What is in view?", [10, 40]),
        ("What was in view at 00:14?", "What is in view?", [10]),
        ("What was in view at 02:30?", "What is in view?", [10, 100, 130, 150]),
        ("What was in view an hour ago?", "What is in view?", [0]),
        ("Was there a cup between 1:30 and 1:55?", "Is there a cup?", [100]),
        ("What came before the cup?", "What came?", [10, 50]),
        ("What came after the cup left?", "What came?", [130, 200]),
        ("What happened between 3:00 and 4:00?", "What happened?", [200]),
        ("Was there a zebra?", None, None),
        ("What is in view?", None, None),
        ("What left?", None, None),
        ("Is there a cup in view?", None, None),
    ],
)
def test_the_moments_that_matter_are_found(
    kitchen: Journal, question: str, as_then: str | None, times: list[float] | None
) -> None:
    found = recall(kitchen, naming_model(), question, now=3605.0, held=3500.0)
    if times is None:
        assert found is None
        return
    assert found is not None
    assert [moment.time for moment in found.moments] == times
    assert found.question == as_then
    narrated = {event.time: event.text for event in kitchen.events() if event.kind == "narration"}
    for moment, evidence in zip(found.moments, found.evidence, strict=True):
        assert evidence == Evidence(moment.time, narrated.get(moment.time, ""))
        assert moment.picture is not None
        assert abs(int(moment.picture.mean()) - moment.time % 256) < 3  # the picture of that very moment


def test_what_the_context_holds_is_not_recalled(kitchen: Journal) -> None:
    assert recall(kitchen, naming_model(), "Where was the knife?", 260, held=150) is None
    assert recall(kitchen, naming_model(), "Where was the knife?", 260, held=210) is not None
    assert recall(kitchen, naming_model(), "What came first?", 260, held=0) is None
    assert recall(kitchen, naming_model(), "What was in view at 00:45?", 260, held=0) is not None


def test_where_nothing_is_held_the_present_is_the_journals_end(kitchen: Journal) -> None:
    found = recall(kitchen, naming_model(), "What is in view?", 3605, held=math.inf)
    assert found is not None
    assert [moment.time for moment in found.moments] == [10, 100, 130, 200, 3600]


def test_a_model_without_names_goes_by_what_was_said(kitchen: Journal) -> None:
    found = recall(kitchen, small_model(), "Where was the cup?", 3605, held=3500)
    assert found is not None
    assert [moment.time for moment in found.moments] == [100, 130]


def test_what_was_said_is_found_when_its_frame_is_gone(kitchen: Journal) -> None:
    kitchen._connection.execute("DELETE FROM frame WHERE time BETWEEN 50 AND 120")
    found = recall(kitchen, small_model(), "Where was the cup?", 3605, held=3500)
    assert found is not None
    assert [(moment.time, moment.picture is None) for moment in found.moments] == [(100, True), (130, False)]
    ids, pixels = found.reading(Session(small_model()).prompt, 32)
    assert ids.count(300) == 10 and pixels is not None and pixels.shape == (1, 3, 32, 32)


@given(st.text(max_size=80))
@settings(max_examples=60, deadline=None)
def test_no_question_breaks_recall(question: str) -> None:
    model = naming_model()
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder) / "journal") as journal:
        assert recall(journal, model, question, 0.0, math.inf) is None
        journal.record([Event(1, "narration", "A cup appears.")], [shows(1, model, True, cup=1.0)])
        found = recall(journal, model, question, 5.0, math.inf)
        assert found is None or 0 < len(found.moments) <= MOST_MOMENTS


# The session


def noise(count: int) -> list[Frame]:
    rng = np.random.default_rng(0)
    return [Frame(index / 2, rng.integers(0, 256, (24, 32, 3), np.uint8)) for index in range(count)]


@pytest.mark.parametrize("budgets", [None, Budgets((180, 150, 160, 150), headroom=24)])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_forgotten_moment_is_answered_from_the_journal_and_the_stream_goes_on_untouched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budgets: Budgets | None, policy: str
) -> None:
    model = small_model()
    model.config.context_tokens = 700
    stream = noise(80)

    def watch(name: str, question: str | None) -> tuple[list[Event], list[Event], list[torch.Tensor]]:
        with Journal(tmp_path / name) as journal:
            engine = Engine(model, budget=budgets, policy=POLICIES[policy]())
            session = Session(model, threshold=0.0034, engine=engine, journal=journal)
            for frame in stream[:60]:
                session.step(frame)
            assert session._held is not None and session._held > 2  # what was before is forgotten
            told: list[Event] = []
            if question:
                held = session.seen_tokens, session.cache_bytes
                session.ask(question)
                told = session.finish()
                assert (session.seen_tokens, session.cache_bytes) == held
            begun = len(recorder.ids)
            after = [event for frame in stream[60:] for event in session.step(frame)]
            return told, after, [logits for at, logits in recorder.last.items() if at >= begun]

    recorder = Recorder(monkeypatch)
    _, undisturbed, expected = watch("plain", None)
    recorder = Recorder(monkeypatch)
    (question, answer), after, logits = watch("asked", "What was in view at 00:01?")
    assert after == undisturbed
    assert len(logits) == len(expected) and all(map(torch.equal, logits, expected))
    assert (question.kind, answer.kind) == ("question", "answer")
    assert answer.evidence and answer.evidence[-1].time <= 1.999
    assert "User: What is in view?" in model.tokenizer.decode(
        [token for token in recorder.ids if token < 256]
    )
    with JournalReader(tmp_path / "asked") as reader:
        assert answer in reader.events()


def test_what_is_recalled_reads_the_same_in_several_chunks(kitchen: Journal) -> None:
    model = naming_model()
    model.config.context_tokens = 700

    def answer(budget: Budgets | None) -> Event:
        session = Session(model, engine=Engine(model, budget=budget), journal=kitchen)
        session.ask("What was in view at 02:30?")
        return session.finish()[-1]

    whole = answer(None)
    assert len(whole.evidence) == 4
    for headroom in (11, 15, 24):  # no frame is cut in two
        assert answer(Budgets((600,) * 4, headroom=headroom)) == whole
    # Where all would be evicted again before it is answered, the latest moments alone are read.
    short = answer(Budgets((200,) * 4, headroom=24)).evidence
    assert 0 < len(short) < 4 and short == whole.evidence[-len(short) :]


def test_what_a_budget_evicts_is_not_held(tmp_path: Path) -> None:
    model = small_model()
    model.config.context_tokens = 700
    engine = Engine(model, budget=Budgets((100,) * 4, headroom=40))
    with Journal(tmp_path / "journal") as journal:
        session = Session(model, threshold=0.0, engine=engine, journal=journal)
        for frame in noise(30):
            before = engine.cache.positions.min()
            session.step(frame)
            if engine.cache.positions.min() < before:  # evicted before this frame was read
                assert session._held == frame.time - 0.5
            elif not engine.cache.evictions[session.slot]:
                assert session._held == 0.0
        assert engine.cache.evictions[session.slot]


def test_a_recollection_that_would_fill_the_context_is_cut_at_its_beginning(kitchen: Journal) -> None:
    session = Session(small_model())
    found = recall(kitchen, session.model, "What was in view at 02:30?", 3605, held=3500)
    assert found is not None and len(found.moments) == 4
    most = len(found.reading(session.prompt, 32)[0]) - 1
    shorter = found.within(most, session.prompt)
    assert shorter is not None
    assert [moment.time for moment in shorter.moments] == [100, 130, 150]
    assert found.within(10, session.prompt) is None
