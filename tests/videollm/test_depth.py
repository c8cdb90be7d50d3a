"""Mixture-of-depths: what runs, what is stored, and that nothing else changes."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import FAMILIES, small_model, text_config, vision_config
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from videollm import VideoLLM, VideoLLMConfig
from videollm.cache import StreamCache
from videollm.checkpoints import adopt
from videollm.configuration import DepthConfig

FRAMES = 5


def interleaved_ids(model: VideoLLM) -> list[int]:
    """Text, frames with an interval token after each, text, a frame, text."""
    frame = [model.config.frame_token_id] * model.config.tokens_per_frame
    return [1, 2, 3, *[token for _ in range(FRAMES - 1) for token in (*frame, 5)], 7, 8, *frame, 9]


def pictures(frames: int = FRAMES) -> torch.Tensor:
    return torch.randint(0, 256, (frames, 3, 32, 32), dtype=torch.uint8)


def step_by_step(model: VideoLLM, ids: list[int], pixels: torch.Tensor) -> tuple[torch.Tensor, StreamCache]:
    """Token by token and frame by frame, through a cache."""
    cache, logits, position, frame = StreamCache(model.config.text_config), [], 0, 0
    while position < len(ids):
        is_frame = ids[position] == model.config.frame_token_id
        width = model.config.tokens_per_frame if is_frame else 1
        step = torch.tensor([ids[position : position + width]])
        picture = pixels[frame : frame + 1] if is_frame else None
        logits.append(model(step, pixel_values=picture, past_key_values=cache).logits)
        position, frame = position + width, frame + is_frame
    return torch.cat(logits, dim=1), cache


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layers", ["interleaved", "all", "none", [0, 2]])
@torch.inference_mode()
def test_steps_equal_one_pass(family: str, layers: str | list[int]) -> None:
    model, ids, pixels = small_model(family, layers=layers), [], pictures()
    ids = interleaved_ids(model)
    whole = model(torch.tensor([ids]), pixel_values=pixels).logits
    steps, _ = step_by_step(model, ids, pixels)
    torch.testing.assert_close(steps, whole, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_all_kept_and_gate_one_is_the_unconverted_decoder(family: str) -> None:
    decoder = AutoModelForCausalLM.from_config(text_config(family)).eval()
    model = small_model(family, layers="all", ratio=1.0, gate="one")
    adopt(model, decoder)
    ids, pixels = torch.tensor([interleaved_ids(model)]), pictures()
    embeds, _ = model.embed(ids, model.encode_frames(pixels))
    expected = decoder(inputs_embeds=embeds).logits
    torch.testing.assert_close(model(ids, pixel_values=pixels).logits, expected, atol=1e-5, rtol=0)
    text = torch.randint(0, 300, (2, 17))
    torch.testing.assert_close(model(text).logits, decoder(text).logits, atol=1e-5, rtol=0)


@given(ratio=st.floats(0.01, 1.0), frames=st.integers(1, 4))
@settings(max_examples=15, deadline=None)
@torch.inference_mode()
def test_skipped_tokens_leave_no_keys(ratio: float, frames: int) -> None:
    model = small_model(layers="interleaved", ratio=ratio)
    tokens = model.config.tokens_per_frame
    ids = [1, 2, *[model.config.frame_token_id] * (tokens * frames), 3]
    cache = StreamCache(model.config.text_config)
    model(torch.tensor([ids]), pixel_values=pictures(frames), past_key_values=cache)
    stored = [layer.get_seq_length() for layer in cache.layers]
    routed = 3 + frames * math.ceil(ratio * tokens)
    assert stored == [len(ids), routed, len(ids), routed]
    assert cache.seen_tokens == len(ids)


@torch.inference_mode()
def test_skipped_tokens_pass_unchanged_and_the_frame_end_always_runs() -> None:
    model = small_model(layers=[1], ratio=0.2)
    layer = model.model.layers[1]
    seen: dict[str, torch.Tensor] = {}
    layer.register_forward_hook(lambda _, args, out: seen.update(into=args[0], out=out))
    tokens = model.config.tokens_per_frame
    ids = torch.tensor([[1, *[model.config.frame_token_id] * tokens, 2]])
    model(ids, pixel_values=pictures(1))
    changed = (seen["into"] != seen["out"]).any(-1)[0]
    frame = changed[1:-1]
    scores = layer.router.scores(seen["into"][0, 1:-1])
    best = scores[:-1].argmax()
    assert changed[0] and changed[-1], "text always runs"
    assert frame.nonzero().squeeze(1).tolist() == sorted([int(best), tokens - 1])


@torch.inference_mode()
def test_a_batch_equals_its_rows() -> None:
    model = small_model()
    frame = [model.config.frame_token_id] * model.config.tokens_per_frame
    rows, pixels = [[1, *frame, 2, *frame, 3], [*frame, 4, *frame, 5, 6]], pictures(4)
    together = model(torch.tensor(rows), pixel_values=pixels).logits
    for row, own, logits in zip(rows, pixels.split(2), together, strict=True):
        alone = model(torch.tensor([row]), pixel_values=own).logits[0]
        torch.testing.assert_close(logits, alone, atol=1e-5, rtol=0)


def test_the_router_learns() -> None:
    model = small_model(gate="score")
    ids = torch.tensor([interleaved_ids(model)])
    model(ids, pixel_values=pictures(), labels=ids.masked_fill(ids >= 300, -100)).loss.backward()
    assert all(layer.router.score.weight.grad.abs().sum() > 0 for layer in model.model.layers[1::2])


def test_mixed_precision_trains() -> None:
    model = small_model(layers="all")
    ids = torch.tensor([interleaved_ids(model)])
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(ids, pixel_values=pictures(), labels=ids.masked_fill(ids >= 300, -100)).loss
    loss.backward()
    assert all(layer.router.score.weight.grad.any() for layer in model.model.layers)


def saved_for_backward(layer: torch.nn.Module, args: tuple, kwargs: dict) -> list[torch.Tensor]:
    """What a layer's pass keeps for its gradient, weights left out, each storage once."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in layer.parameters()}
    saved: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in weights:
            saved[place] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(*args, **kwargs)
    return list(saved.values())


@pytest.mark.parametrize("router", ["top_k", "random", "threshold", "p_mod"])
def test_training_keeps_nothing_of_what_a_skipped_token_would_have_made(router: str) -> None:
    """In a full layer memory grows with all tokens, in a routed one with those that run."""
    model, full = small_model(router=router, ratio=0.2), small_model(router="full")
    frames, index = 40, 3
    ids = torch.tensor([[1, 2, *([300] * 10 + [5]) * frames]])
    calls: dict[torch.nn.Module, tuple[tuple, dict]] = {}
    for layer in (model.model.layers[index], full.model.layers[index]):
        layer.register_forward_pre_hook(lambda m, args, kw: calls.update({m: (args, kw)}), with_kwargs=True)
    ran: list[int] = []
    block = model.model.layers[index].block
    block.mlp.register_forward_pre_hook(lambda _, args: ran.append(args[0].shape[1]))
    embeds = torch.randn(frames, 10, 64)
    for one in (model, full):
        one(ids, frame_embeds=embeds, sequence_lengths=[ids.shape[1] - 110, 110])
    kept, kept_of_all = (saved_for_backward(layer, *call) for layer, call in calls.items())

    text, running = model.config.text_config, ran[0]
    assert {t.shape[1] for t in kept if t.dim() == 3 and t.shape[2] == text.intermediate_size} == {running}
    # Gates that count in skipped tokens, or in a loss over all, are learned from hidden states of all.
    of_all = [t for t in kept if t.numel() >= frames * 10 * text.hidden_size]
    assert len(of_all) == {"threshold": 1, "p_mod": 2}.get(router, 0)
    others, full_layers = (
        sum(t.untyped_storage().nbytes() for t in tensors if not any(t is one for one in of_all))
        for tensors in (kept, kept_of_all)
    )
    assert others < 1.2 * running / ids.shape[1] * full_layers


def test_rows_that_keep_different_numbers_of_tokens_are_no_batch() -> None:
    model = small_model()
    frame = [model.config.frame_token_id] * model.config.tokens_per_frame
    batch = torch.tensor([[1, *frame], [1] * (1 + len(frame))])
    with pytest.raises(ValueError, match="pack them into one row"):
        model(batch, pixel_values=pictures(1))


def test_sliding_attention_is_refused() -> None:
    text = text_config("mistral")
    text.sliding_window = 16
    with pytest.raises(ValueError, match="sliding_window=None"):
        VideoLLM(VideoLLMConfig(text_config=text, vision_config=vision_config()))


@pytest.mark.parametrize(("field", "value"), [("ratio", 0.0), ("ratio", 1.5), ("gate", "soft")])
def test_bad_depth_settings_are_refused(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        DepthConfig(**{field: value})


@pytest.mark.parametrize("layers", ["every", [7], [-1]])
def test_bad_layers_are_refused(layers: str | list[int]) -> None:
    with pytest.raises(ValueError, match="depth layers"):
        DepthConfig(layers=layers).chosen_layers(4)
