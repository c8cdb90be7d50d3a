"""Routers: what each lets run, what it teaches, and that a stream read in steps is routed as in one pass."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import small_model
from test_depth import interleaved_ids, pictures, step_by_step

from videollm.configuration import DepthConfig
from videollm.routers import ROUTERS, ScoringRouter, router_class
from videollm.routers.baselines import skipped_layers

TOKENS, DIM, LAYERS = 10, 16, 12


def router(name: str, layer: int = 5, **depth: object):
    torch.manual_seed(0)
    config = DepthConfig(router=name, **depth)
    return router_class(config)(config, DIM, layer, LAYERS)


@pytest.mark.parametrize("name", ROUTERS)
@torch.inference_mode()
def test_steps_equal_one_pass(name: str) -> None:
    model, pixels = small_model(router=name, ratio=0.3), pictures()
    for layer in model.model.layers:
        if isinstance(getattr(layer, "router", None), ScoringRouter):
            torch.nn.init.normal_(layer.router.score.weight)  # p-MoD's begins at zero
    ids = interleaved_ids(model)
    whole = model(torch.tensor([ids]), pixel_values=pixels).logits
    steps, _ = step_by_step(model, ids, pixels)
    torch.testing.assert_close(steps, whole, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["top_k", "random", "uniform"])
@pytest.mark.parametrize("ratio", [0.01, 0.2, 0.5, 0.99, 1.0])
def test_k_tokens_of_a_frame_run_and_its_last_is_among_them(name: str, ratio: float) -> None:
    kept = router(name, ratio=ratio)(torch.randn(40, TOKENS, DIM), torch.arange(40) * TOKENS).kept
    assert (kept.sum(1) == math.ceil(ratio * TOKENS)).all()
    assert kept[:, -1].all()


def test_chance_treats_tokens_alike_and_differs_by_layer() -> None:
    positions = torch.arange(4000) * (TOKENS + 1)
    hidden = torch.zeros(4000, TOKENS, DIM)
    first, second = (router("random", layer, ratio=0.5)(hidden, positions).kept for layer in (3, 4))
    share = first[:, :-1].float().mean(0)  # [tokens - 1]
    assert (share - 4 / 9).abs().max() < 0.05
    assert 0.4 < (first == second)[:, :-1].float().mean() < 0.6


def test_the_threshold_decides_token_by_token() -> None:
    route, hidden = router("threshold"), torch.randn(30, TOKENS, DIM) * 40
    routing = route(hidden, torch.arange(30))
    gates = route.score(hidden).squeeze(-1).sigmoid()
    expected = gates >= 0.5
    expected[:, -1] = True
    assert torch.equal(routing.kept, expected)
    torch.testing.assert_close(route.gates(hidden), gates)


def test_the_threshold_learns_to_let_the_given_share_run() -> None:
    route, hidden = router("threshold", ratio=0.25), torch.randn(64, TOKENS, DIM) + 0.5
    optimizer = torch.optim.Adam(route.parameters(), lr=0.02)
    for _ in range(300):
        optimizer.zero_grad()
        route(hidden, torch.arange(64)).loss.backward()
        optimizer.step()
    assert abs(route(hidden, torch.arange(64)).kept[:, :-1].float().mean() - 0.25) < 0.05


def test_p_mod_begins_as_the_identity_and_keeps_less_with_depth() -> None:
    route = router("p_mod", layer=6)
    route.reset_parameters()
    hidden = torch.randn(3, TOKENS, DIM)
    routing = route(hidden, torch.arange(3))
    assert (route.gates(hidden) == 1).all() and (routing.skipped_gates == 1).all()
    routed = router_class(DepthConfig(router="p_mod")).routed_layers(DepthConfig(), LAYERS)
    frame, start = torch.randn(1, TOKENS, DIM), torch.zeros(1, dtype=torch.long)
    kept = [int(router("p_mod", index)(frame, start).kept.sum()) for index in routed]
    assert kept == sorted(kept, reverse=True) and kept[-1] == math.ceil(0.15 * TOKENS)


@pytest.mark.parametrize("name", ["early_exit", "layer_skip"])
def test_baselines_skip_as_many_layers_as_top_k_on_average(name: str) -> None:
    depth = DepthConfig(router=name, ratio=0.2)
    routed = router_class(depth).routed_layers(depth, 30)
    assert len(routed) == len(set(routed)) == skipped_layers(depth, 30) == 12
    assert all(0 < index < 30 for index in routed)
    if name == "early_exit":
        assert routed == list(range(18, 30))
    kept = router(name)(torch.randn(2, TOKENS, DIM), torch.arange(2)).kept
    assert kept[:, -1].all() and not kept[:, :-1].any()


def test_full_computation_routes_nowhere() -> None:
    assert not any(hasattr(layer, "router") for layer in small_model(router="full").model.layers)


@pytest.mark.parametrize("name", ["top_k", "threshold", "p_mod"])
def test_every_learned_router_gets_a_gradient_through_the_loss(name: str) -> None:
    model = small_model(router=name)
    ids = torch.tensor([interleaved_ids(model)])
    out = model(ids, pixel_values=pictures(), labels=ids.masked_fill(ids >= 300, -100))
    out.loss.backward()
    assert (out.aux_loss is not None) == (name == "threshold")
    weights = [layer.router.score.weight for layer in model.model.layers if hasattr(layer, "router")]
    assert weights and all(weight.grad.abs().sum() > 0 for weight in weights)


@torch.inference_mode()
def test_text_is_routed_token_by_token_where_all_is() -> None:
    model = small_model(router="threshold", routes="all", ratio=0.5)
    for layer in model.model.layers[1::2]:
        torch.nn.init.normal_(layer.router.score.weight)
    ids = torch.randint(0, 300, (1, 40))
    whole = model(ids).logits
    steps, cache = step_by_step(model, ids[0].tolist(), pictures(0))
    torch.testing.assert_close(steps, whole, atol=1e-4, rtol=0)
    stored = [layer.get_seq_length() for layer in cache.layers]
    assert stored[0] == 40 and 0 < stored[1] < 40


def test_an_unknown_router_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"no router 'best'; there are top_k, threshold"):
        small_model(router="best")
