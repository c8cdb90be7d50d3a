"""What RoPE types do beyond the trained context: `videollm bench rope`.

A language model reads text with numbers hidden in it through a cache that keeps all of it, in chunks, so that
memory is bounded by the length; the type is chosen by the configuration. The last tokens' perplexity, which
numbers it still knows, and the entropy of its attention ("Understanding the RoPE Extensions of Long-Context
LLMs: An Attention Perspective", 2024: where entropy is high at long range, retrieval fails).
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from statistics import correlation, mean
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from train import conversion
from train.long_text import documents, score
from train.results import Results
from videollm.budgets import Budgets
from videollm.checkpoints import adopt
from videollm.configuration import DepthConfig
from videollm.depth_lm import DepthLM, DepthLMConfig
from videollm.layer_budget import LayerBudgetCache
from videollm.layer_needs import attention_entropy

CHUNK = 256
SCORED = 1024  # tokens of a document that the perplexity is of; at most a quarter of the trained context
EXTENSIONS = ("linear", "dynamic", "yarn")


def settings(name: str) -> dict[str, Any]:
    """What the figures depend on, beside the length."""
    return {"model": name, "chunk": CHUNK, "scored": SCORED}


def extended(decoder: PreTrainedModel, rope_type: str, factor: float, length: int) -> DepthLM:
    """The decoder's weights with another RoPE type, for contexts of `length` and a chunk more."""
    config = copy.deepcopy(decoder.config)
    if rope_type != "default":
        config.rope_parameters = config.rope_parameters | {
            "rope_type": rope_type,
            "factor": factor,
            "original_max_position_embeddings": config.max_position_embeddings,
        }
    model = DepthLM(DepthLMConfig(text_config=config, depth_config=DepthConfig(router="full")))
    model.config.context_tokens = length + CHUNK
    adopt(model, decoder)
    return model.eval()


def measure(
    decoder: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    multiples: list[float],
    results: Results,
    told: Callable[[str], None],
    device: torch.device,
) -> Iterator[dict[str, Any]]:
    """A row for every multiple of the trained context and type, those that `results` has already and others
    as they are measured. ValueError where there is too little text."""
    trained = decoder.config.max_position_embeddings
    texts = conversion.Texts.of(tokenizer, conversion.packaged_text())
    text = torch.cat([texts.held_out, texts.learned])
    for multiple in multiples:
        length = int(multiple * trained)
        made = documents(tokenizer, text, length, 1, min(SCORED, trained // 4))
        for rope_type in ("default", *(EXTENSIONS if multiple > 1 else ())):
            key = f"{multiple:g}x, {rope_type}"
            if key not in results.rows:
                told(key)
                begun = time.perf_counter()
                model = extended(decoder, rope_type, multiple, length)
                model.to(device=device)  # type: ignore[call-arg]
                its, cache = score(model, made, lambda model=model, n=length: _keeping(model, n), CHUNK)  # type: ignore[misc]
                entropy = mean(attention_entropy(row) for row in cache.rows(0))
                facts = {"multiple": multiple, "type": rope_type, "tokens": length, "entropy": entropy}
                facts |= {"seconds": time.perf_counter() - begun, "cache_mib": cache.nbytes / 2**20}
                results.add(key, facts | asdict(its))
            yield results.rows[key]


def foretelling(rows: list[dict[str, Any]]) -> dict[str, float]:
    """How the entropy goes together with failures: its correlation (Pearson) over the rows with the log of
    the perplexity and with the log-probability of what was hidden. Empty where rows are too few or alike."""
    entropy = [row["entropy"] for row in rows]
    others = {
        "log perplexity": [math.log(row["perplexity"]) for row in rows],
        "log-probability of the hidden": [row["log_probability"] for row in rows],
    }
    if len(rows) < 3 or any(len(set(values)) == 1 for values in (entropy, *others.values())):
        return {}
    return {name: correlation(entropy, values) for name, values in others.items()}


def _keeping(model: DepthLM, length: int) -> LayerBudgetCache:
    """A cache that keeps all of a document, and whose frequencies are those of its length from the start:
    keys of "dynamic" that were rotated by other ones would not agree."""
    return LayerBudgetCache(model, 1, Budgets((length,) * len(model.model.layers), headroom=CHUNK))
