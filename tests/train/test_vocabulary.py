"""The list of names is sound, and scoring by it is neither blind nor generous."""

from __future__ import annotations

import pytest

from train.vocabulary import load_vocabulary, with_article

VOCABULARY = load_vocabulary()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("apple", "an apple"),
        ("hourglass", "an hourglass"),
        ("unicycle", "a unicycle"),
        ("ukulele", "a ukulele"),
        ("umbrella", "an umbrella"),
        ("ewer", "a ewer"),
        ("euphonium", "a euphonium"),
        ("scissors", "scissors"),
        ("garlic", "garlic"),
        ("t-shirt", "a t-shirt"),
    ],
)
def test_articles_follow_the_sound(name: str, said: str) -> None:
    assert with_article(name) == said


@pytest.mark.parametrize(
    ("text", "name", "right"),
    [
        ("A lion is in view.", "lion", True),
        ("Two lions are in view.", "lion", True),
        ("A sea lion is in view.", "lion", True),
        ("A dandelion is in view.", "lion", False),
        ("A bird is in view.", "flamingo", True),
        ("An animal is in view.", "flamingo", False),
        ("A Granny Smith is in view.", "apple", True),
        ("A pineapple is in view.", "apple", False),
        ("", "apple", False),
    ],
)
def test_naming_a_thing(text: str, name: str, right: bool) -> None:
    assert VOCABULARY.names_thing(text, name) is right


def test_every_source_has_one_name() -> None:
    sources = [source for entry in VOCABULARY.entries for source in entry.sources if ":" in source]
    photographic = [source for source in sources if not source.startswith("video:")]
    assert len(photographic) == len(set(photographic))


def test_no_name_accepts_a_word_that_fits_everything() -> None:
    for entry in VOCABULARY.entries:
        assert not {"animal", "thing", "object", "food", "vehicle", "plant"} & set(entry.accept), entry.name
