"""A training sequence is what the session reads: the same ids, and targets where the session decides."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import small_model
from rehearsal import Rehearsal

from stream import engine
from stream.frames import Frame
from stream.session import Session
from train import language, sequences
from train.compose import Composition, Happening, Sight
from train.features import ClipFeatures
from train.language import Question, narration
from train.lessons import GLIMPSES_A_SEQUENCE, Lessons
from train.renaming import Renaming
from train.sequences import IGNORED, LossWeights, StreamWriter, clip_sequence, deal, pack
from train.slides import Slides
from videollm.prompt import Prompt

LION = (Sight("lion", "left"),)


@pytest.fixture
def prompt() -> Prompt:
    model = small_model()
    return Prompt.of(model.tokenizer, model.config)


@pytest.fixture
def clip() -> ClipFeatures:
    """Nothing, nothing, a lion for five frames, nothing for three."""
    sights = ((),) * 2 + (LION,) * 5 + ((),) * 3
    happenings = (
        Happening(1.0, "appears", "lion", "left", False),
        Happening(3.5, "leaves", "lion", "left", False),
    )
    labels = Composition(np.zeros((10, 2, 2, 3), np.uint8), sights, happenings, "scene", 0)
    return ClipFeatures(labels, np.zeros((len(sights), 10, 8), np.float16))


def test_every_frame_end_decides_and_every_word_is_learned(prompt: Prompt, clip: ClipFeatures) -> None:
    for seed in range(30):
        sequence = clip_sequence(prompt, clip, 2.0, np.random.default_rng(seed))
        ends = [
            index
            for index, token in enumerate(sequence.ids)
            if token == prompt.frame[0] and sequence.ids[index + 1 : index + 2] != [prompt.frame[0]]
        ]
        assert len(ends) == len(sequence.pictures) == 10
        decisions = [sequence.targets[index] for index in ends]
        assert set(decisions) == {prompt.interval, prompt.stop}
        # A narration may come a frame late; both its moment and the frame that speaks say so.
        assert 2 <= decisions.count(prompt.stop) <= 4
        assert decisions[2] == decisions[7] == prompt.stop
        text = prompt.tokenizer.decode([token for token in sequence.ids if token < 300])
        assert "Assistant: A lion appears on the left." in text and "The lion leaves." in text


@pytest.mark.parametrize("cuts", [False, True])
def test_the_session_reads_what_was_trained(
    clip: ClipFeatures, cuts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same tokens in the same order, narrations, questions and cuts included, whenever they come."""
    monkeypatch.setattr(sequences, "LATE_SHARE", 0.0)
    monkeypatch.setattr(sequences, "CUT_MISTAKEN_SHARE", 0.0)
    model = small_model()
    model.config.cut_marker = "\n"
    # A lion is seen from 1 s to 3.5 s: behind a cut and before one, or in the scene that is there all along.
    pixels = [np.full((4, 4, 3), 200 if cuts and 2 <= index < 7 else 50, np.uint8) for index in range(10)]
    happenings = tuple(replace(happening, cut=cuts) for happening in clip.clip.happenings)
    clip = replace(clip, clip=replace(clip.clip, happenings=happenings))
    asked: list[Question] = []

    def kept(*arguments: Any) -> list[Question]:
        asked.append(language.questions(*arguments)[0])
        return asked[-1:]

    monkeypatch.setattr(sequences, "questions", kept)
    monkeypatch.setattr(sequences, "FRAMES_PER_QUESTION", 3)
    for seed in range(20):
        asked.clear()
        rng = np.random.default_rng(seed)
        at = sorted(copy.deepcopy(rng).choice(10, size=3, replace=False))
        sequence = clip_sequence(Prompt.of(model.tokenizer, model.config), clip, 2.0, rng)
        rehearsal, session = Rehearsal(sequence), Session(model)
        monkeypatch.setattr(engine, "read", rehearsal.read)
        for index, question in zip(at, asked, strict=True):
            session.ask(question.text, index / 2)
        said = [event for index in range(10) for event in session.step(Frame(index / 2, pixels[index]))]
        assert rehearsal.fed == sequence.ids[: len(rehearsal.fed)]
        # Only the end of the last reply and the bracket behind it are never read.
        assert len(sequence.ids) - len(rehearsal.fed) <= 1 + len(session.prompt.reopen)
        narrated = [event.text for event in said if event.kind == "narration"]
        came = "A lion is in view." if cuts else "A lion appears on the left."
        assert narrated == [came, "The lion leaves."]
        assert [e.text for e in said if e.kind == "answer"] == [question.answer for question in asked]


def test_targets_are_the_next_tokens_of_what_is_said(prompt: Prompt, clip: ClipFeatures) -> None:
    sequence = clip_sequence(prompt, clip, 2.0, np.random.default_rng(0))
    for index, target in enumerate(sequence.targets[:-1]):
        if target not in (IGNORED, prompt.interval, prompt.stop):
            assert sequence.ids[index + 1] == target
    assert prompt.eos in sequence.targets


def test_words_at_which_a_sentence_turns_count_more(prompt: Prompt) -> None:
    """Of the small tokenizer, a byte a token, those of `language.TURNS` begin with a space or are a comma."""
    stream = StreamWriter(prompt, LossWeights(words=0.5, turns=3.0))
    stream.frame(np.zeros((10, 8), np.float16), speaks=True)
    stream.narrate("A cup, a hat")
    said = list(zip(stream.sequence.targets, stream.sequence.weights, strict=True))
    words = said[-len(prompt.say("A cup, a hat")) - 1 : -1]
    assert [token for token, _ in words] == prompt.say("A cup, a hat")
    assert [weight for _, weight in words[:-1]] == [1.5 if byte in " ," else 0.5 for byte in " A cup, a hat"]
    assert words[-1] == (prompt.eos, 0.5)


def test_several_things_are_listed_from_the_left() -> None:
    came = [
        Happening(1.0, "appears", "cup", "right", True),
        Happening(1.0, "appears", "owl", "left", True),
    ]
    assert narration(came) == narration(came[::-1]) == "An owl and a cup are in view."
    went = [replace(happening, kind="leaves", cut=False) for happening in came]
    assert narration(went) == narration(went[::-1]) == "The owl and the cup leave."
    sights = tuple(Sight(happening.name, happening.place) for happening in came)
    clip = Composition(np.zeros((1, 2, 2, 3), np.uint8), (sights,), tuple(came), "scene", 0)
    assert language.questions(clip, 0, np.random.default_rng(0))[0].answer == "An owl and a cup are in view."


def test_glimpses_tell_what_each_frame_shows_and_what_changes(prompt: Prompt) -> None:
    names = [f"thing {index}" for index in range(6)]
    pages = tuple((Sight(name, "left"),) for name in names)
    # A frame's features say which page it is of; on pages of changes the things are others, 10 further.
    features = np.broadcast_to(np.arange(6, dtype=np.float16)[:, None, None], (6, 10, 8)).copy()
    album = Composition(np.zeros((6, 2, 2, 3), np.uint8), pages, (), "album", 0)
    others = tuple((Sight(f"other {index}", "left"),) for index in range(6))
    changes = replace(album, sights=others, kind="changes")
    renaming = Renaming([], set())
    slides = Slides(prompt, [], [[], []], renaming)
    material = [ClipFeatures(album, features)], [ClipFeatures(changes, features + 10)]
    lessons = Lessons(prompt, [], *material, slides, renaming)
    kinds = set()
    for seed in range(20):
        glimpses = lessons._glimpses(np.random.default_rng(seed))
        shown = glimpses.features[:, 0, 0].astype(int).tolist()
        assert GLIMPSES_A_SEQUENCE <= len(shown) <= 4 * GLIMPSES_A_SEQUENCE
        seen = dict(enumerate(names))
        seen |= {10 + page: f"other {page}" for page in range(6)}
        assert [sights[0].name for sights in glimpses.clip.sights] == [seen[page] for page in shown]
        expected = set()
        for at, page in enumerate(shown):
            before = shown[at - 1] if at else -1
            if page == before:
                continue
            cut = not (page >= 10 and page % 2 and page == before + 1)
            expected.add((at, "appears", seen[page], cut))
            if not cut:
                expected.add((at, "leaves", seen[page - 1], False))
            kinds.add(cut)
        told = {(round(h.time * 2), h.kind, h.name, h.cut) for h in glimpses.clip.happenings}
        assert told == expected
    assert kinds == {True, False}


def test_made_up_slides_are_logits_of_shares(prompt: Prompt) -> None:
    groups = [["cat", "dog", "owl"], ["cup", "hat", "nothing"]]
    slides = Slides(prompt, [], groups, Renaming(groups[-1], set()))
    rng = np.random.default_rng(0)
    for thing, wanted in (((0, 1), (1, 2)), ((1, 0), (None, 0))):
        shares = np.exp([slides._made_up([thing], rng) for _ in range(100)])  # [frames, tokens, classes]
        for group, index in zip((shares[..., :3], shares[..., 3:]), wanted, strict=True):
            np.testing.assert_allclose(group.sum(-1), 1, atol=1e-4)
            if index is not None:
                assert group[:, 0, index].mean() > 0.6


def test_made_up_things_stand_from_left_to_right_as_they_are_listed(prompt: Prompt) -> None:
    groups = [["cat", "dog", "owl"], ["cup", "hat", "nothing"]]
    slides = Slides(prompt, [], groups, Renaming(groups[-1], set()))
    rng, counts = np.random.default_rng(0), set()
    for _ in range(100):
        things = slides._things(int(rng.integers(1, 4)), rng)
        counts.add(len(things))
        frames = np.mean([slides._made_up(things, rng) for _ in range(50)], axis=0)
        middle = frames[[4, 5, 6]]  # [columns, classes]
        at = [middle[:, 3 * group + index].argmax() for group, index in things]
        assert at == sorted(at) and len({*things}) == len(things)
        assert (1, 2) not in things  # "nothing"
    assert counts == {1, 2, 3}


def test_a_row_holds_every_sequence_whole(prompt: Prompt, clip: ClipFeatures) -> None:
    sequences = [clip_sequence(prompt, clip, 2.0, np.random.default_rng(seed)) for seed in range(3)]
    row = pack(sequences, torch.device("cpu"))
    assert row.ids.shape == row.targets.shape == row.weights.shape == (1, sum(row.lengths))
    assert row.pictures.shape == (30, 10, 8)
    for sequence, ids in zip(sequences, row.ids[0].split(row.lengths), strict=True):
        assert ids.tolist() == sequence.ids


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
def test_rows_share_the_sequences_and_none_is_empty(prompt: Prompt, clip: ClipFeatures, rows: int) -> None:
    sequences = [clip_sequence(prompt, clip, 2.0, np.random.default_rng(seed)) for seed in range(3)]
    dealt = deal(sequences, rows)
    learned = [sequence for row in dealt for sequence in row if any(sequence.weights)]
    assert len(dealt) == rows and all(dealt)
    assert sorted(map(id, learned)) == sorted(map(id, sequences))


def test_nothing_to_tell_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing happened"):
        narration([])
