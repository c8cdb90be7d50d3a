"""A stream that was written goes on in a later process as if it had never stopped."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import numpy as np
import pytest
from conftest import small_model
from hypothesis import given, settings
from hypothesis import strategies as st
from test_session import frames

from stream.engine import Engine
from stream.session import Session
from videollm import VideoLLM
from videollm.budgets import Budgets
from videollm.snapshot import SnapshotError, snapshot

BUDGETS = Budgets((40,) * 4, sinks=2, window=32, headroom=40)
ROOT = Path(__file__).parents[2]
TERSE = 6  # tokens of a reply


@pytest.fixture(autouse=True)
def terse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream.session.MAX_REPLY_TOKENS", TERSE)


def session_of(context: int, budgets: Budgets | None, threshold: float = 0.0034, slots: int = 1) -> Session:
    model = small_model()
    model.config.context_tokens, model.config.cut_marker = context, "\n"
    return Session(model, threshold=threshold, engine=Engine(model, slots, budgets))


@given(
    count=st.integers(1, 24),
    at=st.floats(0, 1),
    asked=st.lists(st.sampled_from([0.0, 0.75, 3.3, 9.0, 99.0]), max_size=3),
    threshold=st.sampled_from([0.0, 0.0034, 1.0]),
    budgets=st.sampled_from([None, BUDGETS]),
)
@settings(max_examples=15, deadline=None)
def test_whenever_it_was_written_it_goes_on_the_same(
    count: int, at: float, asked: list[float], threshold: float, budgets: Budgets | None
) -> None:
    stream, stop = frames(count), round(at * count)
    whole, first = session_of(420, budgets, threshold), session_of(420, budgets, threshold)
    for session in (whole, first):
        for time in asked:
            session.ask(f"What was at {time}?", time)
    expected = [event for frame in stream for event in whole.step(frame)] + whole.finish()
    said = [event for frame in stream[:stop] for event in first.step(frame)]
    with tempfile.TemporaryDirectory() as folder:
        first.snapshot(Path(folder) / "stream")
        later = session_of(420, budgets, threshold)
        later.step(*frames(2, seed=7))  # what it saw before is gone
        later.restore(Path(folder) / "stream")
    said += [event for frame in stream[stop:] for event in later.step(frame)] + later.finish()
    assert said == expected
    assert (later.time, later.seen_tokens) == (whole.time, whole.seen_tokens)


def test_a_cache_alone_and_a_stream_in_the_middle_are_refused(tiny: VideoLLM, tmp_path: Path) -> None:
    session = Session(tiny, threshold=0.0)
    session.step(*frames(2))
    snapshot(session.engine.cache, session.slot, tmp_path / "cache")
    with pytest.raises(SnapshotError, match="without its session"):
        session.restore(tmp_path / "cache")
    assert session.time == 0.5
    session.engine.submit(session.slot, session.watching(*frames(3)[2:]))
    for refused in (session.snapshot, session.restore):
        with pytest.raises(RuntimeError, match="in the middle of a step"):
            refused(tmp_path / "cache")


WATCHES = textwrap.dedent(
    """
    import json, sys
    from pathlib import Path
    sys.path[:0] = sys.argv[2:]
    from test_session import frames
    from test_session_snapshot import BUDGETS, TERSE, session_of
    from stream import session
    session.MAX_REPLY_TOKENS = TERSE
    stream, file = session_of(420, BUDGETS), Path(sys.argv[1])
    done = 0
    if file.is_file():
        stream.restore(file)
        done = round(stream.time * 2) + 1
    for number, frame in enumerate(frames(40)[done:], done):
        said = stream.step(frame)
        stream.snapshot(file)
        print(json.dumps([number, [event.text for event in said]]), flush=True)
    """
)


def test_killed_at_any_moment_it_goes_on_from_what_was_written() -> None:
    """A kill costs at most that a frame is said again; what is said is what was said without."""
    whole, rng = session_of(420, BUDGETS), np.random.default_rng()
    expected = {
        number: [event.text for event in whole.step(frame)] for number, frame in enumerate(frames(40))
    }
    said: dict[int, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / "stream", ROOT, ROOT / "tests", ROOT / "tests/stream"]
        command = [sys.executable, "-c", WATCHES, *map(str, paths)]
        for before in (*rng.integers(1, 18, 2), 40):
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
                assert process.stdout is not None
                for line in process.stdout:
                    number, texts = json.loads(line)
                    assert said.setdefault(number, texts) == texts
                    if (before := before - 1) == 0:
                        process.kill()
                        break
    assert said == expected
