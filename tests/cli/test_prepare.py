"""`videollm prepare`: what it makes of clips, what it tells, and what is left when it is stopped."""

from __future__ import annotations

import errno
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Recorder
from prepared import contents, make_moving_clip, write_annotation

from stream.session import Session
from stream.sources import open_source
from train.data import preparation, shards
from train.data.shards import Encoding, Shards, ShardWriter, read_index
from videollm import VideoLLM
from videollm.cli import run
from videollm.cli.loading import MAX_SIDE

CLIPS = tuple(f"clip{number}" for number in range(6))


@pytest.fixture
def checkpoint(tiny: VideoLLM, tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    tiny.save_pretrained(folder)
    return folder


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    for seed, name in enumerate(CLIPS):
        make_moving_clip(tmp_path / "videos" / f"part{seed % 2}" / f"{name}.mp4", seed)
    return tmp_path / "videos"


@pytest.fixture
def command(checkpoint: Path, videos: Path, tmp_path: Path) -> list[str]:
    """All but the folder to fill."""
    annotation = write_annotation(tmp_path / "own.jsonl", *CLIPS)
    where = ["--annotation", str(annotation), "--videos", str(videos), "--model", str(checkpoint)]
    return ["prepare", "jsonl", *where, "--device", "cpu"]


@pytest.fixture
def one_a_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "SHARD_BYTES", 1)


def into(command: list[str], out: Path) -> list[str]:
    return [*command[:2], str(out), *command[2:]]


def shard_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("shard-*"))


# What is made


def test_what_is_prepared_is_what_the_session_sees(
    command: list[str], videos: Path, tiny: VideoLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run([*into(command, tmp_path / "out"), "--fps", "5"]) == 0
    prepared = Shards(tmp_path / "out")
    assert (prepared.fps, prepared.size, tuple(prepared.videos)) == (5.0, 32, CLIPS)
    assert [video.video for video in prepared.annotation] == list(CLIPS)
    recorder = Recorder(monkeypatch)
    session = Session(tiny, threshold=0.0)
    with open_source(str(videos / "part1" / "clip1.mp4"), 5, max_side=MAX_SIDE) as source:
        frames = list(source)
        for frame in frames:
            session.step(frame)
    with torch.inference_mode():
        seen = tiny.vision_tower(torch.cat(recorder.pixels)).half().numpy()
    np.testing.assert_array_equal(prepared.times("clip1"), [frame.time for frame in frames])
    # The batches are others: the last bit of half precision may be, too.
    np.testing.assert_allclose(prepared.features("clip1"), seen, rtol=2e-3, atol=1e-3)
    assert np.abs(seen[0] - seen[-1]).max() > 0.1  # frames of this clip are not alike


def test_the_same_content_is_encoded_once(
    command: list[str], videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    shutil.copy(videos / "part0" / "clip0.mp4", videos / "again.mp4")
    write_annotation(tmp_path / "own.jsonl", *CLIPS, "again")
    assert run(into(command, out)) == 0
    assert re.search(r"encoded\W+6\b.*content of another\W+1\b", capsys.readouterr().out, re.DOTALL)
    assert contents(out)["again"] == contents(out)["clip0"]
    alone = sum(Shards(out).features(name).nbytes for name in CLIPS)
    assert sum(file.stat().st_size for file in shard_files(out)) < alone + 5000
    # One that comes later finds what is there.
    shutil.copy(videos / "part1" / "clip1.mp4", videos / "later.mp4")
    write_annotation(tmp_path / "own.jsonl", *CLIPS, "again", "later")
    before = [file.stat().st_mtime_ns for file in shard_files(out)]
    assert run(into(command, out)) == 0
    assert contents(out)["later"] == contents(out)["clip1"]
    assert [file.stat().st_mtime_ns for file in shard_files(out)] == before


def test_run_again_it_does_what_is_new_or_changed(
    command: list[str], videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(into(command, out)) == 0
    before = contents(out)
    make_moving_clip(videos / "part0" / "clip2.mp4", seed=50)
    make_moving_clip(videos / "new.mp4", seed=51)
    write_annotation(tmp_path / "own.jsonl", *CLIPS, "new")
    capsys.readouterr()
    assert run(into(command, out)) == 0
    assert re.search(r"encoded\W+2\b.*prepared before\W+5\b", capsys.readouterr().out, re.DOTALL)
    after = contents(out)
    assert {name for name in CLIPS if after[name] != before[name]} == {"clip2"}
    assert set(after) == {*CLIPS, "new"}


# Bad input


def test_what_can_not_be_read_is_told_once_counted_and_skipped(
    command: list[str], videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = make_moving_clip(tmp_path / "whole.mkv", 9, seconds=8).read_bytes()
    (videos / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    (videos / "empty.mp4").touch()
    (videos / "nothing.mp4").touch()
    (videos / "text.mp4").write_text("no clip")
    bad = ["cut", "empty", "nothing", "text", "gone", "lost"]
    write_annotation(tmp_path / "own.jsonl", *bad, *CLIPS)
    assert run(into(command, tmp_path / "out")) == 0
    told = capsys.readouterr()
    assert sorted(line.split(": ")[1] for line in told.err.splitlines()) == sorted(bad)
    assert (
        "ends early" in told.err and "is empty (0 bytes)" in told.err and "no file of that name" in told.err
    )
    assert re.search(r"without a file\W+2\W+gone", told.out)
    assert re.search(r"can't be read\W+4\b", told.out)
    assert Shards(tmp_path / "out").videos == list(CLIPS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--videos": "nowhere"}, "there is no folder nowhere"),
        ({"--videos": "tiny"}, "not one of 6 videos is prepared"),
        ({"--annotation": "nowhere.json"}, "nowhere.json"),
        ({"--model": "./nowhere"}, "there is no folder ./nowhere"),
        ({"--device": "abacus"}, "abacus is no device here"),
    ],
)
def test_a_wrong_name_is_one_line(
    change: dict[str, str],
    message: str,
    command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for option, value in change.items():
        command[command.index(option) + 1] = value
    assert run(into(command, tmp_path / "out")) in (1, 2)
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_data_set_of_no_known_kind_names_those_that_are(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command[1] = "imagenet"
    assert run(into(command, tmp_path / "out")) == 1
    assert re.fullmatch(r"videollm: there is no reader 'imagenet'; .*coin.*\n", capsys.readouterr().err)


def test_two_at_once_is_one_line(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ShardWriter(tmp_path / "out", Encoding("tiny", 32, 2.0), []):
        assert run(into(command, tmp_path / "out")) == 1
    assert re.fullmatch(r"videollm: .*is being prepared by another process[^\n]*\n", capsys.readouterr().err)


def test_a_shard_cut_short_is_made_again(
    command: list[str], tmp_path: Path, one_a_shard: None, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(into(command, out)) == 0
    before, files = contents(out), shard_files(out)
    times = [file.stat().st_mtime_ns for file in files]
    files[2].write_bytes(files[2].read_bytes()[:-100])
    capsys.readouterr()
    assert run(into(command, out)) == 0
    told = capsys.readouterr()
    assert re.fullmatch(rf"videollm: .*{files[2].name} was missing or cut short[^\n]*\n", told.err)
    assert re.search(r"encoded\W+1\b", told.out)
    assert contents(out) == before
    kept = [file.stat().st_mtime_ns for file in files if file.exists()]
    assert set(times) - set(kept) == {times[2]}


def test_a_full_disk_says_what_is_kept(
    command: list[str],
    tmp_path: Path,
    one_a_shard: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, write_whole = tmp_path / "out", shards.write_whole

    def full_at_the_third(path: Path, data: bytes) -> None:
        if path.name == "shard-000002.safetensors":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_whole(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "write_whole", full_at_the_third)
        assert run(into(command, out)) == 1
    assert re.fullmatch(
        r"videollm: the disk is full; 2 videos are kept in .*; make room [^\n]*\n", capsys.readouterr().err
    )
    assert Shards(out).videos == ["clip0", "clip1"]
    assert run(into(command, out)) == 0
    assert Shards(out).videos == list(CLIPS)


# Stopped

SLOWLY = """
import sys, time
from train.data import encoding, preparation
from videollm.cli import run

encode_video = encoding.encode_video

def slowly(*arguments):
    time.sleep(0.1)
    return encode_video(*arguments)

encoding.encode_video = slowly
preparation.SHARD_BYTES = 1
sys.exit(run(sys.argv[1:]))
"""


def stopped_by(stop: signal.Signals, command: list[str], out: Path, shards_before: int, delay: float) -> str:
    """Begin the command, and end it so long after the folder has so many shards; what it told."""
    process = subprocess.Popen([sys.executable, "-c", SLOWLY, *into(command, out)], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while len(shard_files(out)) < shards_before and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(delay)
    process.send_signal(stop)
    _, told = process.communicate(timeout=30)
    assert process.returncode == (130 if stop == signal.SIGINT else -stop)
    return told.decode()


def test_killed_at_any_moment_and_run_again_it_makes_the_same(
    command: list[str], tmp_path: Path, one_a_shard: None, capsys: pytest.CaptureFixture[str]
) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    assert run(into(command, whole)) == 0
    delays = random.Random(7)
    for shards_before in (1, 3):
        stopped_by(signal.SIGKILL, command, out, shards_before, delays.uniform(0, 0.15))
        there = set(Shards(out).videos)
        assert len(there) >= shards_before - 1  # at most the one in hand is lost
        assert len(there) < len(CLIPS)
        assert contents(out).items() <= contents(whole).items()
    counted = {entry.shard for entry in read_index(out).videos.values()}
    kept = {file: file.stat().st_mtime_ns for file in shard_files(out) if file.name in counted}
    capsys.readouterr()
    assert run(into(command, out)) == 0
    assert re.search(rf"prepared before\W+{len(there)}\b", capsys.readouterr().out)
    assert contents(out) == contents(whole)
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    assert len(shard_files(out)) == len(CLIPS)


def test_ctrl_c_keeps_what_is_there(command: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    told = stopped_by(signal.SIGINT, command, out, 2, 0.05)
    assert told.splitlines() == ["videollm: interrupted; what was written so far is kept"]
    assert 1 <= len(Shards(out).videos) < len(CLIPS)
    assert run(into(command, out)) == 0
    assert Shards(out).videos == list(CLIPS)
