"""The training benchmark measures what it says, at a small size."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch
from typer.testing import CliRunner

from train.measure import SHAPES, WAYS, _dialogue, _model, measure
from videollm.cli import app


def test_mixture_of_depths_needs_less_memory() -> None:
    shape = dataclasses.replace(SHAPES["tiny"], steps=1)
    rows = list(measure("cpu", shape))
    assert [(row.way, row.checkpointing) for row in rows] == [(w, c) for c in (False, True) for w in WAYS]
    for group in (rows[:4], rows[4:]):
        full, half, every, _ = group
        assert full.time_of_full == full.memory_of_full == 1
        assert full.peak_mib > half.peak_mib > every.peak_mib > 0
    assert rows[4].peak_mib < rows[0].peak_mib  # checkpointing needs less, too


def test_frame_ends_and_replies_are_learned() -> None:
    model = _model(torch.device("cpu"), SHAPES["tiny"], WAYS["full"], grid=3)
    ids, labels = _dialogue(model, frames=20)
    assert ids.shape == labels.shape
    frame = ids == model.config.frame_token_id
    assert frame.sum() == 20 * 10 and (labels[frame] == -100).all()
    ends = frame[:, :-1] & ~frame[:, 1:]
    assert (labels[:, 1:][ends] != -100).all()
    assert (labels != -100).sum() == 18 + 2 * 12


def test_the_command_writes_its_table(tmp_path: Path) -> None:
    file = tmp_path / "train.json"
    done = CliRunner().invoke(
        app, ["bench", "train", "--shape", "tiny", "--device", "cpu", "--json", str(file)]
    )
    assert done.exit_code == 0, done.output
    assert len(json.loads(file.read_text())["rows"]) == 2 * len(WAYS)
    assert CliRunner().invoke(app, ["bench", "train", "--shape", "huge"]).exit_code == 2
