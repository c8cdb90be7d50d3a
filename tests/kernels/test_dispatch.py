"""Which way an operation goes, and that it goes at all without Triton and under torch.compile."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from checks import DEVICE, near, random
from torch import Tensor

from kernels import dispatch
from kernels.gather_norm import gather_rms_norm
from kernels.route import route_top_k
from kernels.scatter_add import scatter_add

WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
import torch
import kernels.attend, kernels.bench, kernels.gather_norm, kernels.route, kernels.scatter_add
print(kernels.route.route_top_k(torch.ones(1, 3, 2), torch.ones(2), 2, True).index.tolist())
"""


def test_an_old_card_gets_the_reference_and_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    card = cast(Tensor, SimpleNamespace(is_cuda=True, get_device=lambda: 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Old card")
    for capability, fits in (((7, 5), False), ((8, 0), True), ((9, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        dispatch._new_enough.cache_clear()
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            assert [dispatch.runs_triton(card) for _ in range(2)] == [fits, fits]
        assert [str(warning.message)[:8] for warning in told] == ["Old card"] * (not fits)
    dispatch._new_enough.cache_clear()


def test_a_cpu_tensor_gets_the_reference() -> None:
    assert not dispatch.runs_triton(torch.ones(1))


def test_powers_of_two() -> None:
    assert [dispatch.power_of_two(number) for number in (1, 2, 3, 4, 5, 4096)] == [1, 2, 4, 4, 8, 4096]


def test_without_triton() -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", WITHOUT_TRITON]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[[0, 2]]"


def test_a_layer_of_them_traces_as_one_graph() -> None:
    def layer(x: Tensor, router: Tensor, norm: Tensor) -> Tensor:
        routed = route_top_k(x.view(3, 10, 16), router, 2, True)
        frame = torch.arange(3, device=x.device)[:, None] * 10
        index = (frame + routed.index).flatten()
        normed = gather_rms_norm(x, index, norm, 1e-5)
        return scatter_add(x, index, normed.tanh(), routed.scores.flatten())

    inputs = random(30, 16).requires_grad_(), random(16).requires_grad_(), random(16).requires_grad_()
    plain, traced = layer(*inputs), torch.compile(layer, backend="eager", fullgraph=True)(*inputs)
    near(traced, plain.double(), torch.float32)
    for one, other in zip(
        torch.autograd.grad(plain.sum(), inputs), torch.autograd.grad(traced.sum(), inputs), strict=True
    ):
        near(one, other.double(), torch.float32)
    assert traced.device.type == DEVICE
