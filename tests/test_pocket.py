"""The default model, as people use it: the real commands on real clips."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import av
import msgspec
import numpy as np
import pytest
import skimage.data
from conftest import Recorder

from stream.engine import Engine
from stream.frames import Event, Frame
from stream.session import Session
from stream.sources import open_source
from videollm import VideoLLM
from videollm.checkpoints import assets_folder

SAMPLE = assets_folder() / "sample.mp4"


def videollm(*arguments: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "videollm.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)


@pytest.fixture(scope="module")
def pocket() -> VideoLLM:
    return VideoLLM.from_pretrained("pocket")


def test_it_narrates_the_sample_clip() -> None:
    done = videollm("narrate", SAMPLE, "--format", "jsonl")
    assert done.returncode == 0, done.stderr
    events = [msgspec.json.decode(line, type=Event) for line in done.stdout.splitlines()]
    said = [(event.time, event.text) for event in events if event.kind == "narration"]
    # The cat comes at 2 s and the coffee at 7 s.
    assert any(2 <= time <= 3 and "cat" in text.lower() for time, text in said), said
    assert any(
        7 <= time <= 8 and ("espresso" in text or "coffee" in text or "cup" in text) for time, text in said
    )
    assert [event.time for event in events] == sorted(event.time for event in events)


def test_it_answers_at_the_asked_time() -> None:
    done = videollm("ask", SAMPLE, "What is in view?", "--at", "00:05", "--format", "jsonl")
    assert done.returncode == 0, done.stderr
    events = [msgspec.json.decode(line, type=Event) for line in done.stdout.splitlines()]
    assert [(event.kind, event.time) for event in events] == [("question", 5.0), ("answer", 5.0)]
    assert "cat" in events[1].text.lower()


def test_the_demo_leaves_every_export_and_needs_no_network(tmp_path: Path) -> None:
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")
    done = videollm("demo", "--out", tmp_path / "out", env=os.environ | nowhere)
    assert done.returncode == 0, done.stderr
    files = {file.name for file in (tmp_path / "out").iterdir()}
    assert files == {
        "narration.jsonl", "narration.srt", "narration.vtt", "narrated.mp4",
        "summary.json", "summary.md", "summary.png",
    }  # fmt: skip
    said, *_, ask, summarize = done.stdout.splitlines()
    assert re.fullmatch(r"\[00:02\] .*cat.*", said)
    assert ask.startswith("  videollm ask") and summarize.startswith("  videollm summarize")
    events = [json.loads(line) for line in (tmp_path / "out" / "narration.jsonl").read_text().splitlines()]
    assert [event["kind"] for event in events[-2:]] == ["question", "answer"]
    with av.open(str(tmp_path / "out" / "narrated.mp4")) as clip:
        assert sum(1 for _ in clip.decode(video=0)) == 500


def test_the_doctor_finds_all_well() -> None:
    done = videollm("doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    for word in ("python", "torch", "device", "PyAV h264", "OpenCV", "kernels", "pocket", "self-test: watch"):
        assert re.search(rf"^ok +{re.escape(word)} ", done.stdout, re.MULTILINE), word


def test_black_is_silent(pocket: VideoLLM) -> None:
    session = Session(pocket)
    black = np.zeros((240, 320, 3), np.uint8)
    assert [event for index in range(20) for event in session.step(Frame(index / 2, black))] == []


def test_streaming_equals_one_pass_with_real_weights(
    pocket: VideoLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    session, recorder = Session(pocket, threshold=1.0), Recorder(monkeypatch)
    rng = np.random.default_rng(0)
    for index in range(4):
        session.step(Frame(index / 2, rng.integers(0, 256, (100, 160, 3), dtype=np.uint8)))
    ids, pixels = torch.tensor([recorder.ids]), torch.cat(recorder.pixels)
    with torch.inference_mode():
        whole = pocket(ids, pixel_values=pixels).logits[0].log_softmax(-1)
    stepped = torch.stack(list(recorder.last.values())).log_softmax(-1)
    torch.testing.assert_close(stepped, whole[list(recorder.last)], atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_a_still_scene_stays_told_when_the_context_begins_anew(pocket: VideoLLM) -> None:
    session = Session(pocket)
    cat = skimage.data.chelsea()
    events, begun = [], 0
    for index in range(420):  # three and a half minutes: two contexts and a bit
        before = session.seen_tokens
        events += session.step(Frame(index / 2, cat))
        begun += session.seen_tokens < before
    assert begun >= 2
    assert [event.time for event in events] == [0.0] and "cat" in events[0].text
    session.ask("What is in view?")
    assert "cat" in session.finish()[-1].text


@pytest.mark.slow
def test_with_a_budget_the_cat_is_told_every_time_it_comes(pocket: VideoLLM) -> None:
    with open_source(str(SAMPLE), fps=2) as source:
        clip = list(source)
    engine = Engine(pocket, budget="10%")
    session, memory, events = Session(pocket, engine=engine), engine.cache.nbytes, []
    for round in range(3):
        for index, frame in enumerate(clip):
            events += session.step(Frame((round * len(clip) + index) / 2, frame.pixels))
    ways = ("cat appears", "cat is in view")
    told = [event.time // (len(clip) / 2) for event in events if any(way in event.text for way in ways)]
    assert told == [0, 1, 2]
    assert session.seen_tokens > 1300 and engine.cache.nbytes == memory
    session.ask("What left?")
    assert "cup" in session.finish()[-1].text


def test_the_readmes_program_runs() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    program = readme.split("```python\n")[1].split("```")[0]
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "narration" in done.stdout and "answer" in done.stdout
