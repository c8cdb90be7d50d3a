"""Hard cuts are told from things that come, go or take each other's place, and models are told of them."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from conftest import small_model

from stream import engine
from stream.cuts import is_cut
from stream.frames import Frame
from stream.session import Session
from stream.sources.square import pad_to_square
from videollm.budgets import Budgets


def picture(seed: int, height: int = 96, width: int = 96) -> np.ndarray:
    """Blocks of random colours: a scene like no other."""
    blocks = np.random.default_rng(seed).integers(30, 226, (6, 6, 3), dtype=np.uint8)
    return np.kron(blocks, np.ones((height // 6, width // 6, 1), np.uint8))


def with_thing(scene: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    seen = scene.copy()
    seen[24:80, 20:76] = colour
    return seen


def test_another_scene_is_a_cut() -> None:
    assert all(is_cut(picture(seed), picture(seed + 1)) for seed in range(20))


def test_what_comes_goes_or_is_swapped_is_none() -> None:
    for seed in range(20):
        scene = picture(seed)
        red, blue = with_thing(scene, (220, 30, 30)), with_thing(scene, (30, 30, 220))
        assert not is_cut(scene, red) and not is_cut(red, blue) and not is_cut(blue, scene)


def test_light_and_noise_are_none() -> None:
    for seed in range(20):
        noise = np.random.default_rng(seed).normal(0, 5, (96, 96, 3))
        scene = picture(seed).astype(np.float32)
        assert not is_cut(scene.astype(np.uint8), np.clip(scene * 0.98 + noise, 0, 255).astype(np.uint8))


def test_a_pan_is_none() -> None:
    for seed in range(20):
        wide = cv2.GaussianBlur(picture(seed, 96, 120), (0, 0), 8)
        assert not is_cut(np.ascontiguousarray(wide[:, :96]), np.ascontiguousarray(wide[:, 8:104]))


def test_the_bars_of_a_wide_picture_are_no_part_of_it() -> None:
    wide = [pad_to_square(picture(seed, 48, 96), 96) for seed in (0, 1)]
    assert is_cut(*wide) and not is_cut(wide[0], wide[0])
    black = np.zeros((96, 96, 3), np.uint8)
    assert not is_cut(black, black)


@pytest.mark.parametrize("marker", ["", "\n"])
def test_a_model_with_a_marker_reads_it_before_a_frame_behind_a_cut(
    marker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model()
    model.config.cut_marker = marker
    session, fed = Session(model, threshold=0.0), list[int]()
    reading = engine.read

    def kept(model, chunks, *rest):  # type: ignore[no-untyped-def]
        fed.extend(chunks[0].ids)
        return reading(model, chunks, *rest)

    monkeypatch.setattr(engine, "read", kept)
    scenes = [picture(0), picture(0), picture(1), with_thing(picture(1), (220, 30, 30)), picture(2)]
    stream = [Frame(index / 2, pixels) for index, pixels in enumerate(scenes)]
    session.step(stream[0])
    session.step(*stream[1:3])
    session.step(*stream[3:])
    prompt = session.prompt
    wanted = [*prompt.start, *prompt.frame]
    for cut in (False, True, False, True):
        wanted += [prompt.interval, *(prompt.cut if cut else []), *prompt.frame]
    assert fed == wanted and bool(prompt.cut) == bool(marker)


def test_a_marker_of_several_tokens_fits_into_the_smallest_headroom() -> None:
    model = small_model()
    model.config.cut_marker = "\ncut: "
    budgets = Budgets((40,) * 4, sinks=2, window=32, headroom=1 + model.config.tokens_per_frame)
    session = Session(model, threshold=0.0, engine=engine.Engine(model, 1, budgets))
    for index in range(12):
        session.step(Frame(index / 2, picture(index // 2)))
    frame, marker = len(session.prompt.frame), len(session.prompt.cut)
    assert session.seen_tokens == len(session.prompt.start) + 12 * frame + 11 + 5 * marker
