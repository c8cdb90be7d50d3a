"""Int8 on the CPU: smaller, nearly the same, and streams still don't depend on each other."""

from __future__ import annotations

import torch
from conftest import small_model

from stream.engine import Engine, Read, Script
from videollm.packed import Chunk, read
from videollm.quantized import Int8Linear, quantize_linears
from videollm.routers import ScoringRouter


@torch.inference_mode()
def test_logits_stay_close_and_routers_stay_exact() -> None:
    exact, model = small_model(), quantize_linears(small_model())
    assert isinstance(model.lm_head, Int8Linear)
    assert all(type(m.score) is torch.nn.Linear for m in model.modules() if isinstance(m, ScoringRouter))
    ids = torch.randint(0, 300, (1, 30))
    expected, got = exact(ids).logits, model(ids).logits
    assert (got - expected).abs().mean() < 0.05 * expected.abs().mean()
    assert not torch.equal(got, expected)


@torch.inference_mode()
def test_a_large_row_leaves_the_others_as_fine_as_they_are() -> None:
    torch.manual_seed(0)
    exact = torch.nn.Linear(64, 32)
    layer = Int8Linear(exact)
    rows = torch.randn(5, 64)
    rows[0] *= 1000
    errors = (layer(rows) - exact(rows)).norm(dim=1) / exact(rows).norm(dim=1)
    assert (errors < 0.02).all(), errors


@torch.inference_mode()
def test_a_row_comes_out_the_same_whatever_its_neighbours() -> None:
    torch.manual_seed(0)
    layer = Int8Linear(torch.nn.Linear(64, 32))
    rows = torch.randn(9, 64) * torch.logspace(-3, 3, 9)[:, None]
    together = layer(rows)
    for index in range(len(rows)):
        assert torch.equal(layer(rows[index : index + 1])[0], together[index])


def test_neighbours_change_nothing() -> None:
    model = quantize_linears(small_model())
    alone, shared = Engine(model, slots=1), Engine(model, slots=2)
    wanted = read(model, [Chunk(0, [5, 6, 7])], alone.cache)[0]
    got: list[torch.Tensor] = []

    def script(ids: list[int]) -> Script:
        got.append((yield Read(ids)))
        return []

    for ids in ([5, 6, 7], [200] * 9):
        shared.submit(shared.join(), script(ids))
    shared.step()
    torch.testing.assert_close(got[0][0], wanted, atol=1e-5, rtol=1e-5)
