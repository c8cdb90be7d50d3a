import itertools

import numpy as np
import pytest
import skimage.data

from stream.sources.square import pad_to_square
from train.captioner import Captioner
from train.compose import SIZE


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    return Captioner()


@pytest.fixture(scope="module")
def cat_then_cup() -> np.ndarray:
    pictures = [pad_to_square(picture, SIZE) for picture in (skimage.data.chelsea(), skimage.data.coffee())]
    return np.repeat(np.stack(pictures), 4, axis=0)  # two seconds of each


def test_the_best_name_is_said_when_it_changes(captioner: Captioner, cat_then_cup: np.ndarray) -> None:
    first, second = captioner.names_alone(cat_then_cup)
    assert (first.time, second.time) == (0.0, 2.0)
    assert "cat" in first.text
    assert any(name in second.text for name in ("espresso", "cup"))


def test_the_language_model_says_what_it_is_told(captioner: Captioner, cat_then_cup: np.ndarray) -> None:
    said = captioner.told(cat_then_cup)
    assert "cat" in said[0].text
    assert all("<|im" not in event.text for event in said)
    assert all(one.text != following.text for one, following in itertools.pairwise(said))
