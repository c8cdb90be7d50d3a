"""Sequences packed into one row are what they are one by one: logits, losses and gradients."""

from __future__ import annotations

import pytest
import torch
from conftest import FAMILIES, small_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from videollm import VideoLLM
from videollm.cache import StreamCache
from videollm.routers import ROUTERS, ScoringRouter

# A dialogue is words before and after each of its frames: at least one word, any number of frames.
dialogues = st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=5), min_size=1, max_size=4)


def restless_model(router: str, family: str = "llama", **depth: object) -> VideoLLM:
    """One whose threshold lets different numbers of tokens run, and whose p-MoD gates are not 1."""
    model = small_model(family, router=router, **depth)
    for module in model.modules():
        if isinstance(module, ScoringRouter):
            torch.nn.init.normal_(module.score.weight)
    return model


def dialogue(model: VideoLLM, words: list[int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Token ids [1, sequence] and frames [frames, tokens, dim] of one."""
    frame = torch.full((model.config.tokens_per_frame,), model.config.frame_token_id)
    parts = [torch.randint(0, 300, (count,), generator=generator) for count in words]
    ids = [parts[0], *[part for text in parts[1:] for part in (frame, text)]]
    shape = len(words) - 1, model.config.tokens_per_frame, model.config.text_config.hidden_size
    return torch.cat(ids)[None], torch.randn(shape, generator=generator)


def learned_labels(model: VideoLLM, ids: Tensor) -> Tensor:
    return ids.masked_fill(ids == model.config.frame_token_id, -100)


def gradients(model: VideoLLM) -> dict[str, Tensor]:
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def check_packing(model: VideoLLM, texts: list[list[int]]) -> None:
    generator = torch.Generator().manual_seed(sum(map(sum, texts)))
    alone = [dialogue(model, words, generator) for words in texts]
    ids, frames = (torch.cat(parts, dim) for parts, dim in zip(zip(*alone, strict=True), (1, 0), strict=True))
    lengths = [part.shape[1] for part, _ in alone]

    together = model(ids, frame_embeds=frames, sequence_lengths=lengths).logits[0]
    together.square().mean().backward()
    packed_gradients = gradients(model)
    apart = torch.cat([model(own, frame_embeds=pictures).logits[0] for own, pictures in alone])
    apart.square().mean().backward()
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)
    expected = gradients(model)
    # A router is not asked where there are no frames at all, alone or packed.
    assert packed_gradients.keys() == expected.keys()
    for name, gradient in packed_gradients.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("router", ROUTERS)
@given(texts=dialogues)
@settings(max_examples=8, deadline=None)
def test_logits_and_gradients_are_those_of_the_dialogues_alone(router: str, texts: list[list[int]]) -> None:
    check_packing(restless_model(router, ratio=0.3), texts)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layers", ["all", [0, 2]])
def test_in_every_family_and_whichever_layers_route(family: str, layers: str | list[int]) -> None:
    check_packing(restless_model("threshold", family, layers=layers), [[3, 2, 4], [5], [1, 1, 1, 6]])


@given(texts=dialogues)
@settings(max_examples=8, deadline=None)
def test_the_loss_is_that_of_all_learned_tokens(texts: list[list[int]]) -> None:
    """The mean over the row: each dialogue's own loss counts by its learned tokens."""
    model, generator = restless_model("top_k"), torch.Generator().manual_seed(0)
    alone = [dialogue(model, words, generator) for words in texts]
    counts = [int((learned_labels(model, ids)[:, 1:] != -100).sum()) for ids, _ in alone]
    if not sum(counts):
        return
    ids, frames = torch.cat([ids for ids, _ in alone], 1), torch.cat([frames for _, frames in alone])
    lengths = [part.shape[1] for part, _ in alone]
    labels = learned_labels(model, ids)
    packed = model(ids, frame_embeds=frames, labels=labels, sequence_lengths=lengths).loss
    losses = [
        model(own, frame_embeds=pictures, labels=learned_labels(model, own)).loss * count
        for (own, pictures), count in zip(alone, counts, strict=True)
        if count
    ]
    torch.testing.assert_close(packed, torch.stack(losses).sum() / sum(counts), atol=1e-5, rtol=1e-5)


def test_the_thresholds_loss_is_over_all_frames_of_the_row() -> None:
    """It is what the router says of all frames of all dialogues at once, not the mean of what it says of each
    dialogue: the share that runs is held over the row."""
    model, generator = restless_model("threshold", layers=[1], ratio=0.3), torch.Generator().manual_seed(0)
    alone = [dialogue(model, words, generator) for words in ([2, 3, 1], [4], [1, 2, 2, 5])]
    layer, seen = model.model.layers[1], []
    layer.router.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    for ids, frames in alone:
        model(ids, frame_embeds=frames)
    expected = layer.router(torch.cat(seen), torch.zeros(5)).loss
    ids, frames = torch.cat([ids for ids, _ in alone], 1), torch.cat([frames for _, frames in alone])
    packed = model(ids, frame_embeds=frames, sequence_lengths=[own.shape[1] for own, _ in alone])
    torch.testing.assert_close(packed.aux_loss, expected, atol=1e-6, rtol=1e-5)


@torch.inference_mode()
def test_text_alone_is_packed_where_everything_is_routed_token_by_token() -> None:
    model = restless_model("threshold", routes="all", layers="all")
    rows = [torch.randint(0, 300, (1, length)) for length in (7, 1, 12)]
    packed = model(torch.cat(rows, 1), sequence_lengths=[7, 1, 12]).logits[0]
    apart = torch.cat([model(row).logits[0] for row in rows])
    torch.testing.assert_close(packed, apart, atol=1e-5, rtol=1e-5)


def test_no_mask_of_all_tokens_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the stock decoder's nor a routed layer's: nothing of total x total elements exists."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    total = 4 * 150

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
            self.elements = max(self.elements, *sizes, 0)
            return out

    model, largest = small_model(), Largest()
    with largest, torch.no_grad():
        model(torch.ones(1, total, dtype=torch.long), sequence_lengths=[150] * 4, logits_to_keep=1)
    assert 0 < largest.elements < total * total


@pytest.mark.parametrize(
    ("lengths", "depth", "options", "message"),
    [
        ([3, 3], {}, {}, "2 sequences of 6 tokens in all are no row of (1, 5)"),
        ([2, 3], {}, {"past_key_values": True}, "can't be cached"),
        ([2, 3], {"routes": "all"}, {}, "top_k routes a whole row alike"),
    ],
)
def test_what_cannot_be_packed_is_refused(
    lengths: list[int], depth: dict[str, str], options: dict[str, object], message: str
) -> None:
    model = small_model(**depth)
    if options:
        options = {"past_key_values": StreamCache(model.config.text_config)}
    with pytest.raises(ValueError) as caught:
        model(torch.ones(1, 5, dtype=torch.long), sequence_lengths=lengths, **options)
    assert message in str(caught.value)


def test_another_attention_is_refused() -> None:
    model = small_model()
    model.set_attn_implementation("eager")
    with pytest.raises(ValueError, match="the default"):
        model(torch.ones(1, 5, dtype=torch.long), sequence_lengths=[2, 3])


@pytest.mark.gpu
def test_the_cuda_kernel_is_the_reference() -> None:
    """Evenly spaced tokens run, so that rounding doesn't change the choice."""
    model, generator = small_model(router="uniform").cuda().bfloat16(), torch.Generator().manual_seed(0)
    alone = [dialogue(model, words, generator) for words in ([9, 2, 40], [1], [60, 5, 5, 80])]
    alone = [(ids.cuda(), frames.cuda().bfloat16()) for ids, frames in alone]
    ids, frames = torch.cat([ids for ids, _ in alone], 1), torch.cat([frames for _, frames in alone])
    packed = model(ids, frame_embeds=frames, sequence_lengths=[own.shape[1] for own, _ in alone]).logits[0]
    packed.float().square().mean().backward()
    found = gradients(model)
    apart = torch.cat([model(own, frame_embeds=pictures).logits[0] for own, pictures in alone])
    apart.float().square().mean().backward()
    torch.testing.assert_close(packed, apart, atol=5e-2, rtol=5e-2)
    for name, gradient in gradients(model).items():
        assert (found[name] - gradient).norm() <= 5e-2 * gradient.norm(), name
