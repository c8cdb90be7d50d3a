"""The kernels compile for an H100, whose compiler comes with Triton and is stricter than the interpreter.

Compiled code and interpreted code exclude each other in a process, so this file runs itself in another one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

POINTERS = {torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int32: "*i32", torch.int64: "*i64"}
SHARED_BYTES = 99 << 10  # what the smallest cards from compute capability 8.0 on have for one program


@pytest.mark.slow
def test_every_kernel_compiles_for_an_h100(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    root = Path(__file__).parents[2]
    environment = os.environ | {
        "TRITON_INTERPRET": "0",
        "TRITON_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": str(root),
    }
    command = [sys.executable, "-W", "ignore", __file__]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == {
        "attend._attend_kernel",
        "attend._join_kernel",
        "gather_norm._backward_kernel",
        "gather_norm._forward_kernel",
        "route._backward_kernel",
        "route._forward_kernel",
        "scatter_add._backward_kernel",
        "scatter_add._forward_kernel",
    }


class Compiled:
    """Stands in a kernel's place: compiles it for the arguments of a launch, and launches nothing."""

    def __init__(self, name: str, kernel: Any) -> None:
        self.name, self.kernel = name, kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return self.launch

    def launch(self, *arguments: Any, num_warps: int, num_stages: int = 3, **constants: Any) -> None:
        from triton import compile
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        given = dict(zip(self.kernel.arg_names, arguments, strict=False)) | constants
        signature, fixed, attributes = {}, {}, {}
        for place, name in enumerate(self.kernel.arg_names):
            value = given[name]
            if name in constants or (type(value) is int and value == 1):
                signature[name], fixed[(place,)] = "constexpr", value
            elif isinstance(value, float):
                signature[name] = "fp32"
            else:
                signature[name] = POINTERS[value.dtype] if isinstance(value, Tensor) else "i32"
                if isinstance(value, Tensor) or value % 16 == 0:
                    attributes[(place,)] = [["tt.divisibility", 16]]
        built = compile(
            ASTSource(self.kernel, signature, fixed, attributes),
            target=GPUTarget("cuda", 90, 32),
            options={"num_warps": num_warps, "num_stages": num_stages},
        )
        assert built.metadata.shared <= SHARED_BYTES, (self.name, built.metadata.shared)
        print(self.name)


def launch_all() -> None:
    """Launch every kernel at the sizes of an 8B model; what a stand-in leaves unwritten is never read."""
    from kernels import attend, gather_norm, route, scatter_add

    for module in (attend, gather_norm, route, scatter_add):
        for name in [name for name in vars(module) if name.endswith("_kernel")]:
            setattr(
                module,
                name,
                Compiled(f"{module.__name__.removeprefix('kernels.')}.{name}", getattr(module, name)),
            )

    def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.empty(*shape, dtype=dtype).requires_grad_()

    hidden, weight = empty(4, 50, 4096), empty(4096)
    for cutoff in (None, 0.1, torch.tensor(0.1)):
        routed = route._Route.apply(hidden, weight, 50, cutoff, True)
        torch.autograd.grad(routed[3].sum(), [hidden, weight])
    x, index, update, gate = (
        empty(200, 4096),
        torch.arange(40),
        empty(40, 4096),
        empty(40, dtype=torch.float32),
    )
    torch.autograd.grad(gather_norm._GatherNorm.apply(x, index, weight, 1e-5).sum(), [x, weight])
    torch.autograd.grad(scatter_add._ScatterAdd.apply(x, index, update, gate).sum(), [x, update, gate])

    lengths, starts = torch.zeros(4, dtype=torch.int32), torch.zeros(5, dtype=torch.int32)
    for longest, dim, dtype in (
        (1, 128, torch.bfloat16),
        (10, 64, torch.bfloat16),
        (1024, 128, torch.bfloat16),
        (1024, 256, torch.bfloat16),
        (1024, 128, torch.float32),
    ):
        query, slab = empty(longest, 32, dim, dtype=dtype), empty(4, 8, 4096, dim, dtype=dtype)
        attend._attend(query, slab, slab, lengths, starts, longest, 0.1, splits=8 if longest == 1 else 1)


if __name__ == "__main__":
    launch_all()
