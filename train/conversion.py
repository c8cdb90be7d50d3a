"""Turns a language model into a mixture-of-depths one and trains it briefly on text: `videollm convert`.

Every token may skip a routed layer here. The weights stay the original's; low-rank adapters and the routers
learn to do with less, and are merged at the end.
"""

from __future__ import annotations

import pydoc_data.topics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    get_cosine_schedule_with_warmup,
)

from train.precision import mixed_precision
from videollm import bases
from videollm.cache import StreamCache
from videollm.checkpoints import adopt
from videollm.configuration import DepthConfig
from videollm.depth_lm import DepthLM, DepthLMConfig

HELD_OUT_SHARE = 0.1
EVALUATED_TOKENS = 8192
LEARNING_RATE = 5e-4
ROUTER_LEARNING_RATE = 5e-3
WARM_UP_SHARE = 0.1
DECODED_TOKENS = 16


def convert(name: str, depth: DepthConfig) -> tuple[DepthLM, PreTrainedModel, PreTrainedTokenizerBase]:
    """The converted model, with the original's weights, beside the original and its tokenizer.

    Raises ValueError for a model whose layers can't be wrapped or a router that there is none of.
    """
    decoder, tokenizer = bases.language_model(name)
    model = DepthLM(DepthLMConfig(text_config=decoder.config, depth_config=depth))
    adopt(model, decoder)
    return model.eval(), decoder.eval(), tokenizer


def load(name: str) -> tuple[DepthLM, PreTrainedTokenizerBase]:
    """A language model as one that reads through a cache of fixed memory: one that was converted as it is,
    another with every token in every layer. Raises OSError and ValueError where there is none."""
    if Path(name).is_dir() and AutoConfig.from_pretrained(name).model_type == DepthLMConfig.model_type:
        return DepthLM.from_pretrained(name).eval(), AutoTokenizer.from_pretrained(name)
    model, _, tokenizer = convert(name, DepthConfig(router="full"))
    return model, tokenizer


def packaged_text() -> str:
    """English that every Python brings along: its language reference, about 700 kB."""
    return "\n\n".join(pydoc_data.topics.topics.values())


def read_texts(paths: list[Path]) -> str:
    """The files as one text. ValueError for one that isn't UTF-8 text, OSError for one that isn't there."""
    texts = []
    for path in paths:
        try:
            texts.append(path.read_text("utf-8"))
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text") from error
    return "\n\n".join(texts)


@dataclass(frozen=True)
class Texts:
    """Token ids of a text, [tokens], in a part to learn from and a part held out, its end."""

    learned: Tensor
    held_out: Tensor

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, text: str) -> Texts:
        ids = tokenizer(text, return_tensors="pt", verbose=False)["input_ids"][0]
        cut = len(ids) - int(len(ids) * HELD_OUT_SHARE)
        return cls(ids[:cut], ids[cut:])


def blocks(ids: Tensor, context: int) -> Tensor:
    """Packed sequences without padding, [blocks, context]. ValueError where there is less than one."""
    count = len(ids) // context
    if count == 0:
        raise ValueError(f"the text has {len(ids)} tokens, too few for a context of {context}: give more")
    return ids[: count * context].view(count, context)


@torch.inference_mode()
def loss(model: PreTrainedModel, ids: Tensor, context: int) -> float:
    """Mean loss a token of held-out text, read in sequences of `context`; what routers add is left out."""
    rows = blocks(ids, context)[: max(1, EVALUATED_TOKENS // context)]
    total = 0.0
    for row in rows:
        out = model(input_ids=row[None].to(model.device), labels=row[None].to(model.device))
        total += (out.loss - (getattr(out, "aux_loss", None) or 0.0)).item()
    return total / len(rows)


def train(
    model: DepthLM, ids: Tensor, context: int, steps: int, seed: int, told: Callable[[float], None]
) -> DepthLM:
    """So many steps of one sequence each; `told` gets each step's loss. Adapters are merged in the end."""
    torch.manual_seed(seed)
    accelerator = Accelerator(mixed_precision=mixed_precision())
    rows = blocks(ids, context)
    config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", exclude_modules=".*router.*")
    adapted = get_peft_model(model, config)
    routers = [p.requires_grad_() for n, p in adapted.named_parameters() if ".router." in n]
    adapters = [p for n, p in adapted.named_parameters() if "lora_" in n]
    groups: list[dict[str, Any]] = [{"params": adapters}, {"params": routers, "lr": ROUTER_LEARNING_RATE}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE)
    schedule = get_cosine_schedule_with_warmup(optimizer, int(steps * WARM_UP_SHARE), steps)
    adapted.train()
    adapted, optimizer, schedule = accelerator.prepare(adapted, optimizer, schedule)
    for _ in range(steps):
        row = rows[torch.randint(len(rows), (1,))].to(accelerator.device)  # [1, context]
        out = adapted(input_ids=row, labels=row)
        accelerator.backward(out.loss)
        accelerator.clip_grad_norm_([*adapters, *routers], 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        told(out.loss.item())
    return accelerator.unwrap_model(adapted).merge_and_unload().eval()


@dataclass(frozen=True)
class Cost:
    """What reading a context and going on from it takes."""

    prefill_ms: float
    token_ms: float
    cache_mib: float


@torch.inference_mode()
def cost(model: PreTrainedModel, ids: Tensor, context: int) -> Cost:
    """Read `context` tokens as one, then a few one by one, through a growing cache."""
    row = blocks(ids, context)[:1].to(model.device)
    cache: Any = StreamCache(model.config.get_text_config())
    started = time.perf_counter()
    model(input_ids=row, past_key_values=cache, logits_to_keep=1)
    read = time.perf_counter()
    for _ in range(DECODED_TOKENS):
        model(input_ids=row[:, :1], past_key_values=cache, logits_to_keep=1)
    return Cost(
        1e3 * (read - started), 1e3 * (time.perf_counter() - read) / DECODED_TOKENS, cache.nbytes / 2**20
    )
