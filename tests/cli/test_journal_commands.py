"""narrate --journal and ask --journal, as a shell runs them."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import av
import msgspec
import numpy as np
import pytest

from stream.frames import Event
from stream.journal import Journal, JournalReader
from videollm import VideoLLM
from videollm.checkpoints import assets_folder
from videollm.cli import run
from videollm.cli.options import parse_size


@pytest.fixture
def checkpoint(tiny: VideoLLM, tmp_path: Path) -> Path:
    """A small random model on disk. At threshold 1 it speaks at every frame: what it says means nothing."""
    folder = tmp_path / "tiny"
    tiny.save_pretrained(folder)
    return folder


def make_clip(path: Path, seconds: int) -> Path:
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=10)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        for index in range(10 * seconds):
            grey = np.full((48, 64, 3), 40 + 60 * (index // 10 % 3), np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(video.encode())
    return path


def test_a_journal_is_kept_continued_and_asked(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip, journal = make_clip(tmp_path / "clip.mp4", 3), tmp_path / "new" / "kitchen.db"
    options = ["--model", str(checkpoint), "--threshold", "1", "--fps", "1"]
    narrate = ["narrate", str(clip), *options, "--journal", str(journal), "--format", "jsonl"]
    assert run(narrate) == 0
    first = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["time"] for line in first] == [0, 1, 2]
    assert run(narrate) == 0
    second = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["time"] for line in second] == [2, 3, 4]  # the clock goes on
    with JournalReader(journal) as reader:
        kept = reader.events()
    assert kept == [msgspec.json.decode(line, type=Event) for line in [*first, *second]]

    ask = ["ask", "--journal", str(journal), "--model", str(checkpoint)]
    assert run([*ask, "What was in view at 00:01?", "What came first?", "--format", "jsonl"]) == 0
    said = [msgspec.json.decode(line, type=Event) for line in capsys.readouterr().out.splitlines()]
    assert [event.kind for event in said] == ["question", "answer"] * 2
    assert [moment.time for moment in said[1].evidence] == [0, 1]
    assert [(moment.time, moment.text) for moment in said[3].evidence] == [(0, kept[0].text)]
    assert run([*ask, "What came first?", "--at", "00:03"]) == 0
    line = capsys.readouterr().out.splitlines()[1]
    assert line.startswith("[00:03] A: ") and line.endswith(")") and "(at 00:00: " in line


def test_a_journal_goes_with_a_budget(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip, journal = make_clip(tmp_path / "clip.mp4", 6), tmp_path / "journal"
    options = ["--model", str(checkpoint), "--budget", "300", "--journal", str(journal)]
    assert run(["narrate", str(clip), "--threshold", "1", *options]) == 0
    capsys.readouterr()
    assert run(["ask", *options, "What came first?"]) == 0
    out, error = capsys.readouterr()
    assert "(at 00:00: " in out and "MiB from beginning to end" in error


def test_a_stream_that_still_runs_is_asked_and_ctrl_c_leaves_its_journal_whole(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip, journal = make_clip(tmp_path / "clip.mp4", 60), tmp_path / "journal"
    options = ["--model", checkpoint, "--threshold", "1", "--realtime", "--journal", journal]
    command = [sys.executable, "-m", "videollm.cli", "narrate", *map(str, [clip, *options])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = [process.stdout.readline(), process.stdout.readline()]
        assert run(["ask", "--journal", str(journal), "--model", str(checkpoint), "What came first?"]) == 0
        assert "(at 00:00: " in capsys.readouterr().out
        assert run(["narrate", str(clip), "--model", str(checkpoint), "--journal", str(journal)]) == 1
        assert "is being written by another program" in capsys.readouterr().err
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.splitlines() == ["videollm: interrupted; what was written so far is kept"]
    assert sorted(file.name for file in tmp_path.glob("journal*")) == ["journal", "journal-lock"]
    with JournalReader(journal) as reader:
        assert len(reader.events()) >= len([*told, *out.splitlines()])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ask", "--journal", "missing.db", "What?"], "there is no journal missing.db"),
        (["ask", "--journal", "notes.txt", "What?"], "notes.txt is not a journal"),
        (["narrate", "clip.mp4", "--journal", "notes.txt"], "notes.txt is not a journal"),
        (["narrate", "clip.mp4", "--journal", "j", "--journal-size", "big"], "'big' is no size"),
        (["narrate", "clip.mp4", "--journal", "j", "--journal-size", "1MB"], "at least 4000000 bytes"),
        (["narrate", "clip.mp4", "--journal", "old.db", "--format", "srt"], "old.db goes on from 00:09"),
        (["ask", "--journal", "old.db", " "], "a question is empty"),
    ],
)
def test_what_cannot_be_is_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    make_clip(tmp_path / "clip.mp4", 1)
    (tmp_path / "notes.txt").write_text("no journal")
    with Journal(tmp_path / "old.db") as journal:
        journal.record([Event(9, "narration", "A cup appears.")])
    assert run(arguments) in (1, 2)
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "size"),
    [("2GB", 2 * 10**9), ("500 mb", 5 * 10**8), ("1.5GiB", 3 * 2**29), ("4096", 4096), ("9K", 9000)],
)
def test_sizes_as_people_write_them(text: str, size: int) -> None:
    assert parse_size(text) == size


def test_the_default_model_remembers_what_it_saw(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    command = [sys.executable, "-m", "videollm.cli"]
    watch = [*command, "narrate", assets_folder() / "sample.mp4", "--journal", journal]
    subprocess.run([*map(str, watch)], check=True, capture_output=True, timeout=300)
    questions = ["Was there a cup?", "What was in view at 00:04?", "What came first?"]
    asked = subprocess.run(
        [*command, "ask", "--journal", str(journal), *questions],
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    cup, view, first = asked.stdout.splitlines()[1::2]
    assert re.search(r"A: Yes, .* \(at 00:07: A cup ", cup)
    assert re.search(r"A: .*cat.* \(at 00:0[23]: .*cat", view)
    assert re.search(r"A: .*cat.* \(at 00:0[23]: .*cat", first)
