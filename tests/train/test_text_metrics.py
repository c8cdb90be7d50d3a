"""Labels, edit distance and captions, against what is worked out by hand or by a slow reference."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.metrics.captions import caption_scores
from train.metrics.edit_distance import edit_distance
from train.metrics.labels import nearest_label


def slow_distance(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """Levenshtein's own recursion."""

    @cache
    def distance(i: int, j: int) -> int:
        if i == 0 or j == 0:
            return i + j
        return min(
            distance(i - 1, j) + 1,
            distance(i, j - 1) + 1,
            distance(i - 1, j - 1) + (a[i - 1] != b[j - 1]),
        )

    return distance(len(a), len(b))


@st.composite
def sequences(draw: st.DrawFn) -> tuple[list[tuple[int, ...]], tuple[int, ...]]:
    size = draw(st.integers(1, 7))
    one = st.tuples(*[st.integers(0, 3)] * size)
    return draw(st.lists(one, min_size=1, max_size=5)), draw(one)


@given(sequences())
def test_edit_distance_is_the_best_of_k_by_length(
    example: tuple[list[tuple[int, ...]], tuple[int, ...]],
) -> None:
    predictions, truth = example
    expected = min(slow_distance(prediction, truth) for prediction in predictions) / len(truth)
    assert edit_distance(predictions, truth) == pytest.approx(expected)


def test_edit_distance_by_hand() -> None:
    # Twenty actions shifted by one: the first is inserted, the last dropped, 2 of 20.
    assert edit_distance([list(range(-1, 19))], list(range(20))) == pytest.approx(0.1)
    # A swap of neighbours is two edits: there are no transpositions.
    assert edit_distance([["b", "a"]], ["a", "b"]) == 1.0
    # Verb and noun together are right only where both are.
    assert edit_distance([[("cut", "bread"), ("take", "cup")]], [("cut", "bread"), ("take", "pan")]) == 0.5


def test_sequences_of_another_length_are_an_error() -> None:
    with pytest.raises(ValueError, match="3 actions, but 2"):
        edit_distance([[1, 2, 3]], [1, 2])
    with pytest.raises(ValueError, match="nothing to compare"):
        edit_distance([], [1])


def test_a_text_means_the_nearest_label() -> None:
    labels = ["Pour milk.", "Pour water.", "Stir."]
    assert nearest_label("pour wate", labels) == 1
    assert nearest_label("Stir.", labels) == 2
    assert nearest_label("", labels) == 2  # the shortest


def test_captions_by_hand() -> None:
    same = caption_scores(["A cat sits on the mat."], ["A cat sits on the mat."])
    assert same == pytest.approx({"bleu_4": 100.0, "chrf": 100.0, "rouge_l": 100.0})
    # ROUGE-L of "a cat sits" and "a dog sits": two of three in order, both ways; and of nothing 0.
    half = caption_scores(["a cat sits", ""], ["a dog sits", "it leaves"])
    assert half["rouge_l"] == pytest.approx((200 / 3 + 0) / 2)
    with pytest.raises(ValueError, match="0 true ones"):
        caption_scores([], [])
