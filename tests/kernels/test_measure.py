"""The benchmark of the operations runs, and says what it has measured."""

from __future__ import annotations

import dataclasses
import json

import torch
from checks import DEVICE

from kernels.bench import SMALL, measure


def test_small_sizes() -> None:
    rows = measure(DEVICE, SMALL)
    assert {row.operation for row in rows} >= {
        "copy",
        "route_top_k",
        "route_threshold and backward",
        "gather_rms_norm and backward",
        "scatter_add",
        "attend",
    }
    assert {row.way for row in rows} >= {"copy", "reference", "padded sdpa"}
    assert ("kernel" in {row.way for row in rows}) == (DEVICE == "cuda")
    assert all(0 < row.low_ms <= row.median_ms <= row.high_ms for row in rows)
    assert json.loads(json.dumps([dataclasses.asdict(row) for row in rows]))


def test_half_precision_gate_stays_float32() -> None:
    assert measure(DEVICE, dataclasses.replace(SMALL, dtype=torch.bfloat16, attention=()))
