"""The same work on a Ray cluster, which each of these tests starts on this machine."""

from __future__ import annotations

import importlib.util
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from moving_clips import contents, make_moving_clip, write_annotation

from train.data import preparation
from train.data.shards import read_index
from videollm import VideoLLM
from videollm.cli import run
from videollm.cli.errors import CommandError
from videollm.cli.ray_workers import AGAIN, on_ray
from videollm.cli.summary import read_summary

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None,
        reason="Ray is not installed; run: pip install --constraint constraints.txt '.[ray]'",
    ),
]
CLIPS = tuple(f"clip{number}" for number in range(8))


@pytest.fixture(autouse=True)
def undisturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray ends workers where memory is short, whoever fills it: here that is not the subject."""
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "0")


@pytest.fixture
def checkpoint(tiny: VideoLLM, tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    tiny.save_pretrained(folder)
    return folder


def workers() -> list[psutil.Process]:
    """The processes of this test's cluster that do its tasks."""
    below = psutil.Process().children(recursive=True)
    return [process for process in below if process.name().startswith("ray::MapWorker")]


class Killer(threading.Thread):
    """Ends one worker as soon as a first shard is counted."""

    def __init__(self, out: Path) -> None:
        super().__init__(daemon=True)
        self.killed: int | None = None
        self.left = 0  # to be done then
        self._out = out

    def run(self) -> None:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            index = read_index(self._out)
            if index is not None and index.shards and (busy := workers()):
                self.left = len(CLIPS) - len(index.shards)
                self.killed = busy[0].pid
                busy[0].kill()
                return
            time.sleep(0.02)


def test_two_workers_make_what_one_process_makes_though_one_dies(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(preparation, "SHARD_BYTES", 1)
    for seed, name in enumerate(CLIPS):
        make_moving_clip(tmp_path / "videos" / f"{name}.mp4", seed, seconds=120)
    (tmp_path / "videos" / "text.mp4").write_text("no clip")
    annotation = write_annotation(tmp_path / "own.jsonl", *CLIPS, "text")
    monkeypatch.chdir(tmp_path)

    def prepare(out: str, *more: str) -> int:
        where = ["--annotation", str(annotation), "--videos", "videos", "--model", "tiny"]
        return run(["prepare", "jsonl", out, *where, "--fps", "10", "--device", "cpu", *more])

    assert prepare("here") == 0
    alone = capsys.readouterr()
    killer = Killer(tmp_path / "there")
    killer.start()
    assert prepare("there", "--ray", "local") == 0
    shared = capsys.readouterr()
    assert killer.killed is not None and killer.left >= 2, "no worker was killed in the middle"
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
    here, there = (
        sorted(file.name for file in (tmp_path / out).glob("shard-*")) for out in ("here", "there")
    )
    assert here == there and len(here) == len(CLIPS)
    for name in here:
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()
    assert [
        line for line in shared.err.splitlines() if line.startswith("videollm: ")
    ] == alone.err.splitlines()
    assert not workers()


def test_summaries_are_shared_out(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(3):
        make_moving_clip(tmp_path / "clips" / f"clip{seed}.mp4", seed)
    (tmp_path / "clips" / "text.mp4").write_text("no clip")
    monkeypatch.chdir(tmp_path)
    command = ["summarize", "clips", "--model", "tiny", "--threshold", "1", "--device", "cpu"]
    assert run([*command, "--out", "here"]) == 1
    alone = capsys.readouterr()
    assert run([*command, "--out", "there", "--ray", "local"]) == 1
    shared = capsys.readouterr()
    assert sorted(Path(line).name for line in shared.out.splitlines()) == [
        f"clip{seed}.md" for seed in range(3)
    ]
    assert [
        line for line in shared.err.splitlines() if line.startswith("videollm: ")
    ] == alone.err.splitlines()
    for seed in range(3):
        assert read_summary(Path("there"), f"clip{seed}") == read_summary(Path("here"), f"clip{seed}")


def test_a_task_that_ends_every_worker_is_one_line(tmp_path: Path) -> None:
    begun = tmp_path / "begun"

    def make() -> Callable[[int], int]:
        def work(number: int) -> int:
            if number == 1:
                with begun.open("a") as file:
                    file.write("once\n")
                os._exit(1)  # as a decoder does that a broken video brings down
            return number

        return work

    with pytest.raises(CommandError, match="4 times over the same work"):
        list(on_ray("local", make, [0, 1, 2]))
    assert begun.read_text().count("once") == AGAIN + 1
    assert not workers()


def test_a_cluster_that_is_nowhere_is_one_line(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = make_moving_clip(tmp_path / "clip.mp4", 1)
    command = ["summarize", str(clip), "--out", str(tmp_path / "out"), "--model", str(checkpoint)]
    assert run([*command, "--ray", "nonsense"]) == 1
    assert "no Ray cluster answers at nonsense" in capsys.readouterr().err.splitlines()[-1]
