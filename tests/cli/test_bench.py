"""What `videollm bench` says where it can't measure."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from ui.load import _steps
from videollm import VideoLLM
from videollm.cli import run
from videollm.cli.bench import decoder
from videollm.cli.errors import CommandError


def test_without_llama_cpp_the_decoder_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(CommandError, match="pip install llama-cpp-python"):
        decoder()


def test_a_server_is_measured_to_its_first_narration_and_beside_its_own_steps(
    tiny: VideoLLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.save_pretrained(tmp_path / "tiny")
    load = ["--sessions", "2", "--fps", "2", "--seconds", "3", "--model", str(tmp_path / "tiny")]
    assert run(["bench", "serve", *load, "--json", str(tmp_path / "serve.json")]) == 0
    assert "first narration" in capsys.readouterr().out
    result = json.loads((tmp_path / "serve.json").read_text())["result"]
    # A random model speaks at every frame, a step a word.
    assert result["narrations"] > 0 and result["failed_sessions"] == 0
    assert result["step"]["count"] > result["narrations"]
    assert 0 < result["step"]["mean_ms"] < result["narration_p50_ms"] <= result["narration_p95_ms"]
    assert result["first_narrated_frame_p50_s"] == 0.0
    assert 0 < result["first_narration_p50_s"] <= result["first_narration_worst_s"] < 30


@pytest.mark.parametrize(("added", "p95_ms"), [((10, 20, 20), 19), ((20, 20, 20), 9.5), ((5, 10, 20), 20)])
def test_steps_are_counted_between_two_looks(added: tuple[int, int, int], p95_ms: float) -> None:
    bounds = ("0.01", "0.02", "+Inf")
    before = dict.fromkeys(bounds, 5.0) | {"count": 5.0, "sum": 0.04, "created": 1.0}
    after = dict(zip(bounds, (5.0 + count for count in added), strict=True))
    steps = _steps(before, after | {"count": 25.0, "sum": 0.34, "created": 1.0})
    assert (steps.count, steps.mean_ms, steps.p95_ms) == (20, pytest.approx(15), pytest.approx(p95_ms))
