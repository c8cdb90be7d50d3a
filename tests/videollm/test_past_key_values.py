"""The fixed cache as `past_key_values`: of a mixture-of-depths model, and of an unconverted one."""

from __future__ import annotations

import pytest
import torch
from conftest import FAMILIES, small_model, text_config
from transformers import AutoModelForCausalLM

from videollm import VideoLLM
from videollm.budgets import Budgets
from videollm.cache import StreamCache
from videollm.layer_budget import LayerBudgetCache
from videollm.packed import Chunk, read


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layers", ["interleaved", "all", [0]])
@torch.inference_mode()
def test_forward_equals_one_pass_for_rows_of_frames_and_of_text(family: str, layers: str | list[int]) -> None:
    model = small_model(family, layers=layers)
    frame = [model.config.frame_token_id] * model.config.tokens_per_frame
    # The second row has no frame: in a routed layer the rows hold unequal numbers from then on.
    ids = torch.tensor([[1, *frame, 2, 3, *frame, 4], [*range(5, 5 + 2 * len(frame) + 4)]])
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    whole = torch.cat([model(ids[:1], pixel_values=pixels).logits, model(ids[1:]).logits])
    cache = LayerBudgetCache(model, 2)
    cut = 1 + len(frame) + 1
    first = model(ids[:, :cut], pixel_values=pixels[:1], past_key_values=cache).logits
    second = model(ids[:, cut:], pixel_values=pixels[1:], past_key_values=cache).logits
    torch.testing.assert_close(torch.cat([first, second], 1), whole, atol=1e-4, rtol=0)
    assert cache.seen_tokens == ids.shape[1]


@torch.inference_mode()
def test_generate_says_the_same_with_a_fixed_cache(tiny: VideoLLM) -> None:
    ids = torch.randint(0, 250, (2, 9))
    fixed = tiny.generate(ids, max_new_tokens=12, do_sample=False, past_key_values=LayerBudgetCache(tiny, 2))
    assert torch.equal(fixed, tiny.generate(ids, max_new_tokens=12, do_sample=False))
    tiny.config.context_tokens = 100
    evicting = LayerBudgetCache(tiny, 2, Budgets((40,) * 4, headroom=16))
    assert tiny.generate(ids, max_new_tokens=150, do_sample=False, past_key_values=evicting).shape == (2, 159)
    assert evicting.positions.max() <= 100


@torch.inference_mode()
def test_an_unconverted_model_reads_through_it_too() -> None:
    decoder = AutoModelForCausalLM.from_config(text_config()).eval()
    cache = LayerBudgetCache(small_model(layers="none"), 2)
    ids = torch.randint(0, 300, (2, 20))
    steps = [decoder(ids[:, at : at + 5], past_key_values=cache).logits for at in range(0, 20, 5)]
    torch.testing.assert_close(torch.cat(steps, 1), decoder(ids).logits, atol=1e-4, rtol=0)


@torch.inference_mode()
def test_what_can_not_work_is_told(tiny: VideoLLM) -> None:
    ids = torch.randint(0, 250, (2, 9))
    with pytest.raises(ValueError, match="a batch of 2 needs a cache of as many slots, not of 1"):
        tiny(ids, past_key_values=LayerBudgetCache(tiny))
    uneven = LayerBudgetCache(tiny, 2)
    read(tiny, [Chunk(0, [1, 2])], uneven)
    with pytest.raises(ValueError, match=r"have read \[2, 0\] tokens"):
        tiny.generate(ids, max_new_tokens=2, past_key_values=uneven)
    decoder = AutoModelForCausalLM.from_config(text_config()).eval()
    with pytest.raises(ValueError, match=r"have read \[2, 0\] tokens"):
        decoder(ids, past_key_values=uneven)
    with pytest.raises(ValueError, match="knows nothing of eviction"):
        decoder(ids, past_key_values=LayerBudgetCache(tiny, 2, Budgets((40,) * 4)))
    tiny.config.context_tokens = 5
    with pytest.raises(ValueError, match="9 tokens behind 0 don't fit into a cache of 5"):
        decoder(ids, past_key_values=LayerBudgetCache(tiny, 2))


def test_gradients_need_the_growing_cache(tiny: VideoLLM) -> None:
    ids = torch.randint(0, 250, (1, 9))
    with pytest.raises(ValueError, match="no backward pass"):
        tiny(ids, past_key_values=LayerBudgetCache(tiny))
    tiny(ids, past_key_values=StreamCache(tiny.config.text_config)).logits.sum().backward()
    assert tiny.model.embed_tokens.weight.grad is not None
