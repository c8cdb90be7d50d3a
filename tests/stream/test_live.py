"""The streams' benchmark: real time, every frame decided once, and a number that holds."""

from __future__ import annotations

import math
import time

import pytest
from conftest import small_model

from stream import live
from videollm import VideoLLM


@pytest.fixture(scope="module")
def tiny() -> VideoLLM:
    return small_model()


@pytest.mark.parametrize("together", [True, False])
def test_a_trial_takes_its_time_and_decides_on_every_frame(tiny: VideoLLM, together: bool) -> None:
    started = time.perf_counter()
    latencies = live.trial(tiny, 3, together, history=20, seconds=1.0)
    assert len(latencies) == 3 * 2
    assert all(0 < latency < 10 for latency in latencies)
    # The last of three staggered streams has its second frame due after two thirds of the second half.
    assert time.perf_counter() - started >= 0.8


def test_the_search_ends_at_the_most_that_hold(monkeypatch: pytest.MonkeyPatch, tiny: VideoLLM) -> None:
    tried = []

    def holds_up_to_21(model: VideoLLM, streams: int, *_: object) -> list[float]:
        tried.append(streams)
        return [0.1] if streams <= 21 else [math.inf]

    monkeypatch.setattr(live, "trial", holds_up_to_21)
    row = live.most_streams("MoD", tiny, True, history=1, seconds=1.0, most=512)
    assert 19 <= row.streams <= 21 and len(tried) == len(set(tried)) < 10
    assert live.most_streams("MoD", tiny, True, history=1, seconds=1.0, most=8).streams == 8
    monkeypatch.setattr(live, "trial", lambda *_: [math.inf])
    assert live.most_streams("MoD", tiny, True, history=1, seconds=1.0, most=8).streams == 0


def test_a_chunk_of_frames_is_read_as_one(tiny: VideoLLM) -> None:
    rates = live.rates("MoD", tiny, history=20, seconds=0.2)
    assert [rate.chunk_frames for rate in rates] == [1, 10]
    assert all(rate.frames_per_second > 0 for rate in rates)
