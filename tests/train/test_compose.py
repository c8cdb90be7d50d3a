"""Composed clips: the same for a seed, and what is told of them follows from what is seen."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from small_media import small_media

from stream.frames import Event
from train.compose import (
    CHANGE,
    FPS,
    GLIMPSES,
    KINDS,
    SIZE,
    SPACING,
    Composition,
    Happening,
    changes,
    compose,
)
from train.features import ClipFeatures, join
from train.language import Question, answers, narration, questions
from train.media import Media, Photograph
from train.scoring import NarrationScore, tells
from train.sequences import IGNORED, by_frame
from train.vocabulary import load_vocabulary

SEEDS = range(12)


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Media:
    return small_media(tmp_path_factory.mktemp("stamps"))


@pytest.fixture(scope="module")
def clips(media: Media) -> list[Composition]:
    return [compose(media, seed, kind) for kind in KINDS for seed in SEEDS]


def test_a_seed_is_a_clip(media: Media) -> None:
    once, again, other = compose(media, 5), compose(media, 5), compose(media, 6)
    assert np.array_equal(once.frames, again.frames) and once.happenings == again.happenings
    assert once.frames.shape != other.frames.shape or not np.array_equal(once.frames, other.frames)


def test_frames_and_sights_go_together(clips: list[Composition]) -> None:
    for clip in clips:
        assert clip.frames.shape == (len(clip.sights), SIZE, SIZE, 3) and clip.frames.dtype == np.uint8


def test_happenings_follow_from_sights(clips: list[Composition]) -> None:
    for clip in clips:
        for happening in clip.happenings:
            index = round(happening.time * FPS)
            now = {sight.name for sight in clip.sights[index]}
            before = {sight.name for sight in clip.sights[index - 1]} if index else set()
            if happening.kind == "appears":
                assert happening.name in now - before
            else:
                assert happening.name in before - now


def test_moments_are_apart(clips: list[Composition]) -> None:
    for clip in clips:
        moments = sorted({round(happening.time * FPS) for happening in clip.happenings})
        # A thing that slides in is plainly seen a frame before another that slides out is gone.
        assert all(later - earlier >= SPACING - 1 for earlier, later in itertools.pairwise(moments))


def test_a_change_is_one_thing_come_gone_or_swapped(media: Media) -> None:
    pages = [changes(media, seed) for seed in range(3)]
    kinds = set()
    for page in pages:
        assert page.frames.shape == (GLIMPSES, SIZE, SIZE, 3) and len(page.sights) == GLIMPSES
        for before, behind in zip(page.sights[::CHANGE], page.sights[1::CHANGE], strict=True):
            old, new = ({sight.name for sight in sights} for sights in (before, behind))
            gone, come = len(old - new), len(new - old)
            assert (gone, come) in {(0, 1), (1, 0), (1, 1)}
            kinds.add((gone, come, len(old & new) > 0))
    assert len(kinds) >= 5  # each also beside a thing that stays


def test_nothing_is_nothing(media: Media) -> None:
    for seed in SEEDS:
        clip = compose(media, seed, "nothing")
        assert clip.happenings == () and not any(clip.sights)


def test_a_still_scene_has_one_moment(media: Media) -> None:
    for seed in SEEDS:
        assert {happening.time for happening in compose(media, seed, "still").happenings} == {0.0}


def numbered(clip: Composition) -> ClipFeatures:
    """The clip with "features" that tell its seed and the number of the frame."""
    rows = [[[clip.seed, index]] for index in range(len(clip.sights))]
    return ClipFeatures(clip, np.array(rows, np.float16))


def test_a_whole_clip_joined_alone_is_itself(clips: list[Composition]) -> None:
    for clip in clips:
        joined = join([(numbered(clip), np.arange(len(clip.sights)))])
        assert (joined.clip.sights, joined.clip.happenings) == (clip.sights, clip.happenings)


def test_an_excerpt_begins_with_what_is_seen(clips: list[Composition]) -> None:
    for clip in clips:
        part = join([(numbered(clip), np.arange(3, len(clip.sights)))])
        at_start = [h.name for h in part.clip.happenings if h.time == 0]
        assert at_start == [sight.name for sight in clip.sights[3]]
        assert part.features[:, 0, 1].tolist() == list(range(3, len(clip.sights)))
        later = [(h.time + 3 / FPS, h.kind, h.name) for h in part.clip.happenings if h.time > 0]
        assert later == [(h.time, h.kind, h.name) for h in clip.happenings if h.time > 3 / FPS]


def test_joined_clips_follow_each_other_by_a_cut(media: Media) -> None:
    lion, ball = (numbered(compose(media, seed, "still")) for seed in (0, 1))
    assert lion.clip.sights[0][0].name != ball.clip.sights[0][0].name
    stands = np.zeros(20, int)
    joined = join([(lion, stands), (ball, np.arange(4))])
    assert [(h.time, h.kind, h.name, h.cut) for h in joined.clip.happenings] == [
        (0.0, "appears", lion.clip.sights[0][0].name, True),
        (10.0, "appears", ball.clip.sights[0][0].name, True),
    ]
    assert joined.features[:20, 0].tolist() == [[0, 0]] * 20 and len(joined.features) == 24


def test_folds_share_no_photograph_and_lose_none(media: Media) -> None:
    many = [Photograph("cup", f"cup/{number}.jpg", b"") for number in range(300)]
    folds = Media(many, media.cutouts, media.footage, media.textures).folds()
    assert sorted([p for fold in folds for p in fold.photographs], key=many.index) == many
    assert all(70 < len(fold.photographs) < 130 for fold in folds)
    assert all(fold.cutouts == media.cutouts for fold in folds)


def test_every_moment_can_be_told_and_scores_in_full(clips: list[Composition]) -> None:
    vocabulary = load_vocabulary()
    score = NarrationScore()
    for clip in clips:
        moments = by_frame(clip.happenings, FPS).items()
        said = [Event(index / FPS, "narration", narration(group)) for index, group in moments]
        score.add(clip.happenings, said, vocabulary)
    row = score.row()
    assert row["events"] > 50
    assert (row["narrated"], row["named"], row["time_diff"]) == (1, 1, 0)
    assert row["false_per_event"] == row["extra_per_event"] == 0


def test_silence_and_chatter_score_badly(clips: list[Composition]) -> None:
    vocabulary = load_vocabulary()
    silent, chatty = NarrationScore(), NarrationScore()
    for clip in clips:
        silent.add(clip.happenings, [], vocabulary)
        talk = [Event(index / FPS, "narration", "A stapler is in view.") for index in range(len(clip.sights))]
        chatty.add(clip.happenings, talk, vocabulary)
    assert silent.row()["narrated"] == 0 and silent.row()["false_per_event"] == 0
    assert chatty.row()["named"] == 0 and chatty.row()["false_per_event"] > 5


def test_things_beyond_what_happened_are_extra() -> None:
    came = tuple(Happening(1.0, "appears", name, "left", True) for name in ("cup", "stapler"))
    extras = []
    for text in (
        "A cup is in view.",
        "A cup and a stapler are in view.",
        "A cup, a hat, a bus and a cat are in view.",
    ):
        score = NarrationScore()
        score.add(came, [Event(1.0, "narration", text)], load_vocabulary())
        extras.append(score.extra)
    assert extras == [0, 0, 2]


def test_each_answer_is_right_by_its_own_score_and_wrong_by_another(clips: list[Composition]) -> None:
    vocabulary, rng = load_vocabulary(), np.random.default_rng(0)
    kinds = set()
    for clip in clips:
        for question in questions(clip, len(clip.sights) - 1, rng):
            kinds.add(question.kind)
            assert answers(question, question.answer, vocabulary), question
            assert not answers(question, "I can't say.", vocabulary), question
    assert kinds == {"in view", "first", "where", "is there", "left"}


def test_ignored_is_what_pytorch_ignores() -> None:
    import torch

    loss = torch.nn.functional.cross_entropy(torch.randn(2, 5), torch.tensor([IGNORED, 1]), reduction="none")
    assert loss[0] == 0


@pytest.mark.parametrize(
    ("text", "kind", "right"),
    [
        ("A lion appears on the left.", "appears", True),
        ("The lion leaves.", "appears", False),
        ("The lion leaves.", "leaves", True),
        ("A lion appears on the left.", "leaves", False),
        ("The cup leaves and a lion appears on the left.", "appears", True),
        ("The lion leaves and a cup appears on the left.", "appears", False),
        ("The lion leaves and a cup appears on the left.", "leaves", True),
        ("A lion and a cup are in view.", "appears", True),
    ],
)
def test_a_sentence_tells_a_coming_or_a_going(text: str, kind: str, right: bool) -> None:
    happening = Happening(0.0, kind, "lion", "left", False)
    assert tells(text, happening, load_vocabulary()) is right


def test_a_thing_that_left_is_not_on_the_left() -> None:
    question = Question("where", "Where is the lion?", "The lion is on the left.", ("lion",))
    assert answers(question, "The lion is on the left.", load_vocabulary())
    assert not answers(question, "The lion left.", load_vocabulary())
