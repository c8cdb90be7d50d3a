"""Streams of hours, a few seconds long."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import test_compose
from conftest import small_model

from stream.engine import Engine
from stream.session import Session
from train import long_streams
from train.benchmark import write_clip
from train.compose import FPS, compose
from train.long_streams import narration, played, strung
from train.media import Media
from videollm.budgets import Budgets

media = test_compose.media
FIRST, CLIPS = 60, 12  # among these every kind of joint


def session(threshold: float = 1.0) -> Session:
    """At threshold 1 it speaks at every frame, at 0 never: what it says means nothing."""
    model = small_model()
    model.config.context_tokens = 600
    return Session(model, threshold=threshold, engine=Engine(model, budget=Budgets((80,) * 4)))


def test_clips_follow_each_other_and_what_was_in_view_counts(media: Media) -> None:
    end, before = 0.0, ()
    joints = []
    for seed, (begin, frames, happenings) in zip(
        range(FIRST, FIRST + CLIPS), strung(media, FIRST), strict=False
    ):
        clip = compose(media, seed)
        assert begin == end and np.array_equal(frames, clip.frames)
        end = begin + len(frames) / FPS
        assert all(begin <= happening.time < end for happening in happenings)
        later = [(h.time - begin, h.kind, h.name) for h in happenings if h.time > begin]
        assert later == [(h.time, h.kind, h.name) for h in clip.happenings if h.time > 0]
        old, new = {sight.name for sight in before}, {sight.name for sight in clip.sights[0]}
        told = {(h.kind, h.name) for h in happenings if h.time == begin}
        if new:
            assert told == {("appears", name) for name in new - old}
        else:
            assert told == {("leaves", name) for name in old}
        joints.append((bool(old), bool(new), bool(old & new)))
        before = clip.sights[-1]
    assert {(True, True, False), (True, True, True), (True, False, False)} <= set(joints)


def test_narration_is_scored_by_the_minute(media: Media) -> None:
    rows = list(narration(session(), media, minutes=0.4, block=0.2))
    assert [row["minutes"] for row in rows] == ["0 to 0.2", "0.2 to 0.4"]
    stream = list(itertools.takewhile(lambda part: part[0] < 24, strung(media, long_streams.CLIP_SEED)))
    for number, row in enumerate(rows):
        parts = [part for part in stream if number * 12 <= part[0] < (number + 1) * 12]
        assert row["events"] == sum(len(happenings) for *_, happenings in parts)
        moments = sum(len({happening.time for happening in happenings}) for *_, happenings in parts)
        assert row["narrated"] == 1.0
        assert row["false"] == sum(len(frames) for _, frames, _ in parts) - moments


def test_a_clip_is_played_over_and_over(media: Media, tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    write_clip(clip, compose(media, 3).frames[:10], long_streams.CLIP_RATE)
    watching, young = session(), session()
    rows = list(played(watching, young, clip, 0.004, 0.002, tmp_path / "first"))  # 29 frames
    assert [row["hours"] for row in rows] == [0.002, 0.004]
    assert [row["sayings"] for row in rows] == [14, 15]
    assert all(row["drift_seconds"] == 0 for row in rows)
    assert watching.time == young.time == 28 / FPS  # the young one goes on from the first block's end
    assert all(row["rss_mib"] > 50 and 0 < row["median_ms"] <= row["p95_ms"] for row in rows)
    assert rows[0]["of_young"] is None and rows[1]["of_young"] > 0
    assert rows[0]["cache_mib"] == rows[1]["cache_mib"] == watching.engine.cache.nbytes / 2**20


def test_a_way_that_is_done_is_not_run_again(
    media: Media, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def load(model: str, device: str, budget: str | None) -> Session:
        asked.append(budget)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return session(threshold=0.0)

    monkeypatch.setattr(long_streams, "load_session", load)
    monkeypatch.setattr(long_streams, "load_media", lambda data, split: media)
    out = tmp_path / "out.json"

    def measure() -> dict:
        long_streams.quality(tmp_path, out, minutes=0.4, block=0.2, budget="10%", model="tiny")
        return json.loads(out.read_text())["rows"]

    with pytest.raises(KeyboardInterrupt):
        measure()
    kept = json.loads(out.read_text())["rows"]
    assert list(kept) == ["without, 0", "without, 1"]
    rows = measure()
    assert asked == [None, "10%", "10%"]
    assert list(rows) == [*kept, "budget 10%, 0", "budget 10%, 1"]
    assert rows["without, 1"] == kept["without, 1"]
