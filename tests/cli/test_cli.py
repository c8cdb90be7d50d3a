"""The command line: what it prints, what it leaves on disk, and how it says what is wrong."""

from __future__ import annotations

import errno
import json
import re
import signal
import subprocess
import sys
import time
import wave
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from stream.frames import Event
from videollm import VideoLLM
from videollm.cli import run
from videollm.cli.doctor import namesake
from videollm.cli.errors import CommandError, describe
from videollm.cli.loading import load_session
from videollm.cli.summarize import clip_names
from videollm.cli.summary import Clip, Settings, Summary, is_finished, write_summary

COMMANDS = (
    "narrate",
    "ask",
    "summarize",
    "serve",
    "calibrate",
    "prepare",
    "dialogues",
    "train",
    "evaluate",
    "doctor",
    "demo",
)


def cli(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The real program, as a shell starts it."""
    command = [sys.executable, "-m", "videollm.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=cwd)


def make_clip(path: Path, seconds: float = 2, grey: int = 90) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=10)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        for _ in range(round(seconds * 10)):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), grey, np.uint8), format="rgb24")
            container.mux(video.encode(frame))
        container.mux(video.encode())
    return path


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return make_clip(tmp_path / "clip.mp4")


@pytest.fixture
def checkpoint(tiny: VideoLLM, tmp_path: Path) -> Path:
    """A small random model on disk. At threshold 1 it speaks at every frame: what it says means nothing."""
    folder = tmp_path / "tiny"
    tiny.save_pretrained(folder)
    return folder


# Help


def test_help_names_every_command() -> None:
    done = cli("--help")
    assert done.returncode == 0
    assert all(command in done.stdout for command in COMMANDS)


def test_help_imports_neither_torch_nor_transformers() -> None:
    code = "import sys, videollm.cli; print({'torch', 'transformers', 'av', 'cv2'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shows_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert re.search(rf"Examples:\s+videollm {command}", shown)


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["narrate", "missing.mp4"], "missing.mp4 does not exist"),
        (["narrate", "notes.txt"], "notes.txt"),
        (["narrate", "empty.mp4"], "empty.mp4 is empty"),
        (["ask", "missing.mp4", "What?"], "missing.mp4 does not exist"),
        (["narrate", "rtsp://127.0.0.1:9/live"], "refused the connection"),
        (["narrate", "camera:99"], "camera 99 is not there"),
        (["narrate", "sound.wav"], "sound.wav has no video"),
        (["narrate", "folder"], "folder has no pictures in it"),
        (["ask", "clip.mp4", "why " * 3000, "--at", "0", "--model", "tiny"], "the question is too long"),
    ],
)
def test_a_bad_source_is_one_line_and_a_failure(
    arguments: list[str], message: str, tmp_path: Path, tiny: VideoLLM
) -> None:
    (tmp_path / "notes.txt").write_text("no clip")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "folder").mkdir()
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(8000))
    make_clip(tmp_path / "clip.mp4")
    tiny.save_pretrained(tmp_path / "tiny")
    done = cli(*arguments, cwd=tmp_path)
    assert done.returncode in (1, 2)
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("videollm: ")
    assert message in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], ""),
        (["narrate"], "Missing argument 'SOURCE'"),
        (["dance"], "No such command 'dance'"),
        (["narrate", "clip.mp4", "--format", "doc"], "--format"),
        (["narrate", "clip.mp4", "--fps", "0"], "--fps"),
        (["narrate", "clip.mp4", "--fps", "nan"], "--fps"),
        (["narrate", "clip.mp4", "--threshold", "2"], "--threshold"),
        (["narrate", "clip.mp4", "--out", "said.doc"], "said.doc does not say its format"),
        (["ask", "clip.mp4"], "ask something behind the SOURCE"),
        (["ask", "clip.mp4", " "], "a question is empty"),
        (["ask", "clip.mp4", "What?", "--at", "noon"], "'noon' is no time"),
        (["ask", "clip.mp4", "What?", "--at", "1", "--at", "2"], "2 times for 1 question"),
        (["summarize", "clip.mp4"], "Missing option '--out'"),
    ],
)
def test_a_wrong_command_line_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) <= 1


@pytest.mark.parametrize("device", ["cuda:99", "tpu", "meta"])
def test_a_device_that_is_not_there_is_one_line(
    device: str, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["narrate", str(clip), "--device", device]) == 2
    assert re.fullmatch(rf"videollm: Invalid value for --device: {device} [^\n]+\n", capsys.readouterr().err)


def test_a_model_that_is_not_there_is_one_line(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["narrate", str(clip), "--model", "./nowhere"]) == 1
    assert re.fullmatch(r"videollm: there is no folder \./nowhere[^\n]+\n", capsys.readouterr().err)


def test_the_clip_is_never_overwritten(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = clip.read_bytes()
    assert run(["narrate", str(clip), "--format", "srt", "--out", str(clip)]) == 2
    assert "is the clip itself" in capsys.readouterr().err
    assert clip.read_bytes() == before


@pytest.mark.parametrize("size", [(1, 1), (8192, 8192)])
def test_any_size_is_watched(
    size: tuple[int, int], tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", size, "red").save(tmp_path / "picture.png")
    options = ["--model", str(checkpoint), "--threshold", "1"]
    assert run(["narrate", str(tmp_path / "picture.png"), *options]) == 0
    assert capsys.readouterr().out.startswith("[00:00] ")


def test_a_clip_cut_in_half_is_told_and_a_failure_and_its_sayings_are_kept(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = make_clip(tmp_path / "whole.mkv", seconds=8).read_bytes()
    cut, said = tmp_path / "cut.mkv", tmp_path / "said.srt"
    cut.write_bytes(whole[: len(whole) // 2])
    options = ["--model", str(checkpoint), "--threshold", "1"]
    assert run(["narrate", str(cut), *options, "--out", str(said)]) == 1
    assert re.fullmatch(r"videollm: cut\.mkv: [^\n]*ends early[^\n]*\n", capsys.readouterr().err)
    assert "00:00:00,000 --> " in said.read_text()
    assert run(["summarize", str(cut), *options, "--out", str(tmp_path / "pages")]) == 1
    assert (tmp_path / "pages" / "cut.md").exists()


def test_a_full_disk_under_standard_output_is_one_line(clip: Path, checkpoint: Path) -> None:
    command = [sys.executable, "-m", "videollm.cli", "narrate", clip, "--model", checkpoint]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*map(str, command), "--threshold", "1"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert done.returncode == 1
    assert re.fullmatch(r"videollm: the disk is full[^\n]*\n", done.stderr)


def test_a_full_disk_says_what_is_saved() -> None:
    message = describe(OSError(errno.ENOSPC, "No space left on device", "said.srt"))
    assert "the disk is full" in message
    assert "saved in said.srt" in message


# With a model


def test_narrate_writes_events_as_lines(
    clip: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", str(checkpoint), "--threshold", "1", "--fps", "1"]
    assert run(["narrate", str(clip), *options]) == 0
    lines = capsys.readouterr().out.split("\n")[:-1]
    assert [line[:8] for line in lines] == ["[00:00] ", "[00:01] "]
    assert run(["narrate", str(clip), *options, "--format", "jsonl"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.split("\n")[:-1]]
    assert [(event["time"], event["kind"]) for event in events] == [(0, "narration"), (1, "narration")]


def test_a_budget_fixes_the_memory_and_tells_it(
    clip: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", str(checkpoint), "--threshold", "1"]
    assert run(["narrate", str(clip), *options]) == 0
    said = capsys.readouterr().out
    assert run(["narrate", str(clip), *options, "--budget", "50%"]) == 0
    budgeted = capsys.readouterr()
    assert budgeted.out == said
    # 4 layers of 2048 entries and 128 more, of two heads: key and value of 16 floats and a mark; 32 queries
    assert "cache: 2 MiB from beginning to end" in budgeted.err


@pytest.mark.parametrize(
    ("budget", "message"), [("much", 'such as "20%"'), ("30", "at least 37"), ("100%", "or no budget")]
)
def test_a_budget_that_can_not_work_is_one_line(
    budget: str, message: str, clip: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["narrate", str(clip), "--model", str(checkpoint), "--budget", budget]) == 2
    error = capsys.readouterr().err
    assert "--budget" in error and message in " ".join(error.split()) and "Traceback" not in error


def test_ask_pairs_questions_with_times_and_the_rest_with_the_end(
    clip: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = ["First?", "--at", "00:01", "Beyond?", "--at", "01:00", "Last?"]
    command = ["ask", str(clip), *questions, "--model", str(checkpoint), "--format", "jsonl"]
    assert run(command) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.split("\n")[:-1]]
    assert [(event["time"], event["kind"]) for event in events] == [
        (1, "question"),
        (1, "answer"),
        (1.5, "question"),
        (1.5, "answer"),
        (1.5, "notice"),
        (1.5, "question"),
        (1.5, "answer"),
    ]
    assert [event["text"] for event in events if event["kind"] == "question"] == [
        "First?",
        "Last?",
        "Beyond?",
    ]
    assert "01:00" in events[4]["text"]


def test_ctrl_c_leaves_what_was_said_on_disk(tmp_path: Path, checkpoint: Path) -> None:
    clip = make_clip(tmp_path / "long.mp4", seconds=60)
    said = tmp_path / "new" / "said.srt"
    options = ["--model", checkpoint, "--threshold", "1", "--realtime", "--out", said]
    command = [sys.executable, "-m", "videollm.cli", "narrate", *map(str, [clip, *options])]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 40
        while time.monotonic() < deadline and not (said.exists() and said.stat().st_size):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=20)
    assert process.returncode == 130
    assert error.splitlines() == ["videollm: interrupted; what was written so far is kept"]
    cues = re.findall(r"^(\d+)\n[\d:,]{12} --> [\d:,]{12}\n.", said.read_text(), re.MULTILINE)
    assert cues == [str(number) for number in range(1, len(cues) + 1)]
    assert len(cues) >= 2
    assert said.read_text().endswith("\n\n")


def test_summarize_goes_on_after_a_bad_clip_and_resumes(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clips, out = tmp_path / "clips", tmp_path / "pages"
    for folder, grey in (("a", 60), ("b", 200)):
        make_clip(clips / folder / "same.mp4", seconds=1, grey=grey)
    (clips / "bad.mp4").write_text("no clip")
    command = ["summarize", str(clips), "--out", str(out), "--model", str(checkpoint)]
    command += ["--threshold", "1", "--fps", "1"]
    assert run(command) == 1
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1
    assert "bad.mp4" in captured.err
    pages = sorted(out.glob("*.md"))
    assert len(pages) == 2
    summaries = [json.loads(page.with_suffix(".json").read_text()) for page in pages]
    assert {Path(summary["clip"]["path"]).parent.name for summary in summaries} == {"a", "b"}
    for page, summary in zip(pages, summaries, strict=True):
        assert [event["kind"] for event in summary["events"]] == ["narration"]
        picture = re.search(r"!\[Contact sheet\]\((.+)\)", page.read_text())
        assert picture
        assert Image.open(out / picture[1]).width > 320

    (clips / "bad.mp4").unlink()
    changed = {page: page.stat().st_mtime_ns for page in pages}
    make_clip(clips / "new.mp4", seconds=1)
    assert run([*command, "--resume"]) == 0
    assert "2 of 3 clips are finished already" in capsys.readouterr().out
    assert {page: page.stat().st_mtime_ns for page in pages} == changed
    assert (out / "new.json").exists()


# The doctor


def test_the_doctor_names_a_package_that_hides_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(namesake()) == []
    metadata = tmp_path / "kernels-0.9.0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 0.9.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    (row,) = namesake()
    assert row.good is False
    assert "kernels 0.9.0" in row.detail
    assert "pip uninstall kernels" in row.detail
    with pytest.raises(CommandError, match=r"kernels 0\.9\.0"):
        load_session("pocket", "cpu")


# What summarize leaves


def summary_of(clip: Path, settings: Settings) -> Summary:
    return Summary(Clip.of(clip), settings, 2.0, [Event(1.0, "narration", "It *moves*.")])


def test_a_summary_counts_as_finished_only_for_that_clip_and_those_settings(
    clip: Path, tmp_path: Path
) -> None:
    settings, out = Settings("pocket", 2.0, None), tmp_path / "pages"
    write_summary(out, "clip", summary_of(clip, settings), Image.new("RGB", (8, 8)))
    assert sorted(file.name for file in out.iterdir()) == ["clip.json", "clip.md", "clip.png"]
    assert is_finished(out, "clip", clip, settings)
    assert not is_finished(out, "clip", clip, Settings("pocket", 4.0, None))
    assert not is_finished(out, "other", clip, settings)
    make_clip(clip, seconds=1)
    assert not is_finished(out, "clip", clip, settings)


def test_a_page_cut_off_by_a_kill_is_not_finished(clip: Path, tmp_path: Path) -> None:
    settings, out = Settings("pocket", 2.0, None), tmp_path / "pages"
    write_summary(out, "clip", summary_of(clip, settings), Image.new("RGB", (8, 8)))
    mark = out / "clip.json"
    mark.write_bytes(mark.read_bytes()[:-20])
    assert not is_finished(out, "clip", clip, settings)


def test_clips_of_one_stem_never_share_a_name(tmp_path: Path) -> None:
    here, there = (make_clip(tmp_path / folder / "same.mp4") for folder in ("here", "there"))
    out = tmp_path / "pages"
    assert len(set(clip_names([here, there], out).values())) == 2
    assert clip_names([here], out) == {here: "same"}
    write_summary(out, "same", summary_of(here, Settings("pocket", 2.0, None)), Image.new("RGB", (8, 8)))
    assert clip_names([here], out) == {here: "same"}
    assert clip_names([there], out)[there] != "same"
    # A clip that has its page keeps its name, whoever comes beside it.
    assert clip_names([here, there], out)[here] == "same"


def test_a_clip_of_the_longest_name_has_a_page(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = make_clip(tmp_path / f"{'ä' * 120}.mp4", seconds=1)
    assert run(["summarize", str(clip), "--out", str(tmp_path / "pages"), "--model", str(checkpoint)]) == 0
    assert Path(capsys.readouterr().out.strip()).is_file()


def test_a_place_that_cannot_be_written_is_told_before_any_work(
    clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["summarize", str(clip), "--out", "/proc/pages", "--model", "./never-loaded"]) == 1
    assert "/proc/pages" in capsys.readouterr().err
