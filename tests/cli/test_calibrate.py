"""`videollm calibrate`, and what --budget makes of it."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch
from conftest import byte_tokenizer, small_model, text_config
from test_cli import make_clip
from transformers import AutoModelForCausalLM

from videollm.budgets.calibration import Calibration, read_calibration
from videollm.cli import run
from videollm.cli.layer_plot import layer_plot
from videollm.layer_budget import fingerprint


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    small_model().save_pretrained(folder)
    return folder


@pytest.fixture
def clips(tmp_path: Path) -> list[str]:
    return [str(make_clip(tmp_path / f"{grey}.mp4", seconds=3, grey=grey)) for grey in (50, 200)]


def test_clips_calibrate_and_the_budget_uses_it_by_itself(
    checkpoint: Path, clips: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    narrate = ["narrate", clips[0], "--model", str(checkpoint), "--budget", "10%"]
    assert run(narrate) == 0
    assert "the same in every layer" in capsys.readouterr().err
    assert run(["calibrate", str(checkpoint), *clips, "--budget", "10%"]) == 0
    told = capsys.readouterr()
    made = read_calibration(checkpoint / "calibration.json")
    assert made is not None and made.fingerprint == fingerprint(small_model())
    assert made.sources == clips and made.measurements == 2 and made.window == 32
    # Routed layers hold fewer of the frames' tokens, so that they can't need as much.
    assert max(made.attention[1::2]) < min(made.attention[::2])
    shares = [int(line.split("│")[4]) for line in told.out.splitlines() if line.startswith("│")]
    assert sum(shares) == 4 * 409 and shares[0] > shares[1]
    picture = ElementTree.fromstring((checkpoint / "calibration.svg").read_text())
    assert len(picture.findall("{http://www.w3.org/2000/svg}polyline")) == 3
    assert run(narrate) == 0
    assert f"by the calibration of {made.date}" in capsys.readouterr().err


def test_a_calibration_of_another_model_is_refused(
    checkpoint: Path, clips: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["calibrate", str(checkpoint), clips[0]]) == 0
    before = (checkpoint / "calibration.json").read_bytes()
    with torch.no_grad():
        other = small_model()
        other.model.norm.weight[0] = 3
        other.save_pretrained(checkpoint)
    assert (checkpoint / "calibration.json").read_bytes() == before
    capsys.readouterr()
    options = ["--model", str(checkpoint)]
    assert run(["narrate", clips[0], *options, "--budget", "10%"]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "another model than this one" in error and "videollm calibrate" in error
    assert run(["narrate", clips[0], *options]) == 0, "without a budget nobody asks for it"
    assert run(["calibrate", str(checkpoint), clips[0]]) == 0, "it can be made anew"
    assert run(["narrate", clips[0], *options, "--budget", "10%"]) == 0


def test_a_language_model_calibrates_on_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, text = tmp_path / "base", tmp_path / "text.txt"
    AutoModelForCausalLM.from_config(text_config()).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    text.write_text("a line of many\n" * 60)
    assert run(["calibrate", str(folder), str(text)]) == 0
    made = read_calibration(folder / "calibration.json")
    assert made is not None and made.sources == [str(text)] and made.tokens == 810
    assert run(["calibrate", str(folder), str(tmp_path / "nowhere.txt")]) == 1
    assert "No such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give clips to calibrate it with"),
        (["nowhere.mp4"], "nowhere.mp4"),
        (["CLIP", "--budget", "30"], "at least 37"),
    ],
)
def test_what_goes_wrong_is_one_line_and_nothing_is_written(
    arguments: list[str],
    message: str,
    checkpoint: Path,
    clips: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [clips[0] if argument == "CLIP" else argument for argument in arguments]
    assert run(["calibrate", str(checkpoint), *given]) in (1, 2)
    error = " ".join(capsys.readouterr().err.split())
    assert message in error and "Traceback" not in error
    assert not (checkpoint / "calibration.json").exists()


def test_an_interrupted_calibration_leaves_the_earlier_one(
    checkpoint: Path, clips: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["calibrate", str(checkpoint), clips[0]]) == 0
    before = sorted((file.name, file.read_bytes()) for file in checkpoint.iterdir())

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("videollm.layer_needs.summarize", interrupt)
    assert run(["calibrate", str(checkpoint), *clips]) == 130
    assert sorted((file.name, file.read_bytes()) for file in checkpoint.iterdir()) == before


def test_the_plot_shows_every_layer_and_escapes_names() -> None:
    made = Calibration(
        model="<a&b>",
        fingerprint="",
        sources=[],
        window=32,
        tokens=1,
        measurements=1,
        date="2026-01-01",
        attention=[10.0, 100.0, 50.0],
        output=[5.0, 20.0, 10.0],
    )
    picture = layer_plot(made, "20%", [40, 90, 60])
    root = ElementTree.fromstring(picture)
    lines = [line.get("points", "").split() for line in root.findall("{http://www.w3.org/2000/svg}polyline")]
    assert [len(points) for points in lines] == [3, 3, 3]
    heights = [float(point.split(",")[1]) for point in lines[0]]
    assert heights[1] < heights[2] < heights[0], "more is higher"
    assert "&lt;a&amp;b&gt;" in picture


def test_calibrations_are_json_that_tells_how_they_were_made(checkpoint: Path, clips: list[str]) -> None:
    assert run(["calibrate", str(checkpoint), clips[0]]) == 0
    facts = json.loads((checkpoint / "calibration.json").read_text())
    assert {"model", "fingerprint", "sources", "window", "date", "attention", "output"} <= set(facts)
