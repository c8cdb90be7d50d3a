"""What a cache of fixed memory costs in quality: `videollm bench cache`.

A language model reads held-out text with numbers hidden in it, in chunks, and evicts as it goes; the
perplexity of each document's last tokens, and which numbers it still knows. What layers need is measured on
another part of the text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import msgspec
from transformers import PreTrainedTokenizerBase

from train.conversion import Texts
from train.long_text import Document, calibrate, documents, score
from train.results import Results
from videollm.budgets import build_budgets
from videollm.budgets.calibration import Calibration
from videollm.depth_lm import DepthLM
from videollm.eviction import policy_named
from videollm.layer_budget import LayerBudgetCache

CHUNK = 64
SCORED_SHARE = 0.25  # of a document
CALIBRATED_LENGTHS = 2  # tokens of the calibration, in lengths of a document
FULL = "full"
# By name: how entries are shared out among layers, and which stay.
WAYS = {
    "zigzag + snapkv": ("zigzag", "snapkv"),
    "zigzag_output + snapkv": ("zigzag_output", "snapkv"),
    "uniform + snapkv": ("uniform", "snapkv"),
    "pyramid + snapkv": ("pyramid", "snapkv"),
    "window": ("uniform", "window"),
    "h2o": ("uniform", "h2o"),
    "expected_attention": ("uniform", "expected_attention"),
    "key_similarity": ("uniform", "key_similarity"),
}


@dataclass(frozen=True)
class Load:
    """How much is measured; budgets are shares of a document."""

    length: int
    documents: int
    budgets: tuple[float, ...]
    evict_once: bool  # where the scored tokens begin, in place of whenever a row is full

    @property
    def scored(self) -> int:
        """Tokens of a document that the perplexity is of; whole chunks."""
        return int(SCORED_SHARE * self.length) // CHUNK * CHUNK


QUICK = Load(length=2048, documents=1, budgets=(0.1, 0.2), evict_once=False)
FULL_LOAD = Load(length=4096, documents=2, budgets=(0.05, 0.1, 0.2, 0.5), evict_once=False)


def settings(
    name: str, tokenizer: PreTrainedTokenizerBase, texts: Texts, load: Load
) -> tuple[dict[str, Any], list[Document]]:
    """What the figures depend on, the documents' token ids among them, and the documents. ValueError where
    there is too little text for them."""
    made = documents(tokenizer, texts.held_out, load.length, load.documents, load.scored)
    facts = {"model": name, "length": load.length, "scored": load.scored, "chunk": CHUNK}
    return facts | {"evict_once": load.evict_once, "documents": [asdict(each) for each in made]}, made


def measure(
    model: DepthLM,
    name: str,
    texts: Texts,
    load: Load,
    made: list[Document],
    results: Results,
    told: Callable[[str], None],
) -> Iterator[dict[str, Any]]:
    """A row for every budget and way, those that `results` has already and others as they are measured; the
    full cache comes first. `told` hears what is being done."""

    def row(key: str, budget: float, way: str, new_cache: Callable[[], LayerBudgetCache]) -> dict[str, Any]:
        if key not in results.rows:
            told(key)
            its, cache = score(model, made, new_cache, CHUNK, load.evict_once)
            # Where it goes down but once, a row is as long as the document, and what it holds is what counts.
            fixed = cache.evicts and not load.evict_once
            size = cache.nbytes if fixed else cache.filled_bytes(0)
            results.add(key, {"budget": budget, "way": way, "cache_mib": size / 2**20} | asdict(its))
        return results.rows[key]

    yield row(FULL, 1.0, FULL, lambda: LayerBudgetCache(model))
    calibration = _calibration(model, name, texts, load, results, told)
    for budget in load.budgets:
        for way, (kind, policy) in WAYS.items():
            budgets = build_budgets(
                model,
                int(budget * load.length),
                kind,
                calibration,
                headroom=load.length if load.evict_once else CHUNK,
            )
            yield row(
                f"{budget:.0%}, {way}",
                budget,
                way,
                lambda budgets=budgets, policy=policy: LayerBudgetCache(  # type: ignore[misc]
                    model, 1, budgets, policy_named(policy)
                ),
            )


def _calibration(
    model: DepthLM, name: str, texts: Texts, load: Load, results: Results, told: Callable[[str], None]
) -> Calibration:
    """What layers need at a document's length, measured on text that isn't scored."""
    key = "calibration"
    if key not in results.rows:
        ids = texts.learned[: CALIBRATED_LENGTHS * load.length].tolist()

        def read(tokens: int) -> None:
            told(f"{key}, {tokens} of {len(ids)} tokens")

        made = calibrate(model, name, "Python's reference", ids, load.length, read)
        results.add(key, msgspec.to_builtins(made))
    return msgspec.convert(results.rows[key], Calibration)
