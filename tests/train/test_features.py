"""Footage as stills: up to its end, every frame twice, and computed once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_media import small_media

from train import media as media_module
from train.compose import FPS
from train.features import footage_features
from train.material import vision_tower


def test_footage_ends_where_its_label_does(tmp_path: Path) -> None:
    (whole,) = small_media(tmp_path).footage
    part = replace(whole, end=2.0)
    assert len(part.frames(FPS)) == 4
    np.testing.assert_array_equal(part.frames(FPS), whole.frames(FPS)[:4])


def test_every_frame_of_footage_is_seen_twice_and_kept(tmp_path: Path) -> None:
    media = small_media(tmp_path)
    media = replace(media, footage=[replace(media.footage[0], end=4.0)])  # nothing is seen before 2 s
    first = footage_features(media, vision_tower(), tmp_path / "kept", seed=0)
    assert [still.name for still in first] == ["bottle"] * 8
    assert all(still.features.shape == (2, 10, 1280) for still in first)
    assert not np.array_equal(*first[-1].features)
    again = footage_features(media, vision_tower(), tmp_path / "kept", seed=1)  # read, not computed
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.features, other.features)


def test_what_is_not_installed_is_named_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(media_module, "PEDESTRIANS", tmp_path / "missing.avi")
    with pytest.raises(media_module.MediaError, match="apt-get install opencv-doc"):
        media_module.pedestrians()
