"""How many entries of its cache each layer needs: what budgets are shared out by.

ZigZagKV (Zhong et al., COLING 2025) measures it in two ways, both by the newest queries, an observation
window. A mixture-of-depths layer is measured over what it holds, the tokens that ran there.
"""

from __future__ import annotations

from datetime import date
from statistics import mean
from typing import NamedTuple

import torch
from torch import Tensor

from videollm.budgets import Budgets
from videollm.budgets.calibration import Calibration
from videollm.depth_lm import DepthLM
from videollm.eviction import Row, SnapKVPolicy, attention_of
from videollm.layer_budget import LayerBudgetCache, fingerprint

ATTENTION_SHARE = 0.9
OUTPUT_SIMILARITY = 0.9
BLOCK = 128  # entries looked at together


class Needs(NamedTuple):
    """Entries that each layer of a stream needs."""

    attention: list[float]  # LMBA
    output: list[float]  # LMBO


def measuring_budgets(model: DepthLM) -> Budgets:
    """As much as the model's context allows; a cache of them keeps the newest queries, too."""
    return Budgets((model.context - Budgets.headroom,) * len(model.model.layers))


def measure(cache: LayerBudgetCache, slot: int) -> Needs:
    """What the layers need at this point of a stream, of a cache whose policy keeps queries."""
    attention, output = zip(*(_needs(row) for row in cache.rows(slot)), strict=True)
    return Needs(list(attention), list(output))


def summarize(
    model: DepthLM, name: str, sources: list[str], tokens: int, measured: list[Needs]
) -> Calibration:
    """The mean over measurements, of which there must be one. A layer that held nothing needs one entry."""
    by_layer = {
        way: [
            max(1.0, mean(layer)) for layer in zip(*(getattr(needs, way) for needs in measured), strict=True)
        ]
        for way in Needs._fields
    }
    return Calibration(
        model=name,
        fingerprint=fingerprint(model),
        sources=sources,
        window=SnapKVPolicy.observation,
        tokens=tokens,
        measurements=len(measured),
        date=date.today().isoformat(),
        **by_layer,
    )


def _needs(row: Row) -> tuple[float, float]:
    if row.keys.shape[1] == 0:
        return 0.0, 0.0
    return attention_need(row), output_need(row)


def attention_need(row: Row) -> float:
    """LMBA: the fewest entries whose attention, averaged over the window, sums to `ATTENTION_SHARE`; mean
    over heads."""
    ranked = _window_attention(row).mean(1).sort(dim=-1, descending=True).values  # [heads, entries]
    return float(_first_reaching(ranked.cumsum(-1), ATTENTION_SHARE).float().mean())


def output_need(row: Row) -> float:
    """LMBO: the fewest entries, taken by falling attention of the window, from which the layer's attention
    output comes out to a cosine similarity of `OUTPUT_SIMILARITY` with that from all entries, averaged over
    the window; mean over heads.

    The paper looks at the hidden states behind the layer; here it is what a head adds to them, before the
    output projection, where no other head's entries enter.
    """
    attention = _window_attention(row)  # [heads, queries, entries]
    order = attention.mean(1).argsort(dim=-1, descending=True)  # [heads, entries]
    heads = len(order)
    values = row.values.float().repeat_interleave(heads // len(row.values), 0)  # [heads, entries, head_dim]
    whole = attention @ values  # [heads, queries, head_dim]
    so_far = torch.zeros_like(whole)
    similarities = []
    for places in order.split(BLOCK, dim=1):  # never all queries, entries and dimensions at a time
        weights = attention.gather(2, places[:, None].expand(-1, attention.shape[1], -1))
        added = values.gather(1, places[..., None].expand(-1, -1, values.shape[-1]))
        partial = so_far[:, :, None] + (weights[..., None] * added[:, None]).cumsum(2)
        similarity = torch.cosine_similarity(partial, whole[:, :, None], dim=-1)  # [heads, queries, block]
        similarities.append(similarity.mean(1))
        so_far = partial[:, :, -1]
    reached = _first_reaching(torch.cat(similarities, 1), OUTPUT_SIMILARITY)
    return float(reached.float().mean())


def attention_entropy(row: Row) -> float:
    """Entropy of the window's attention in nats, mean over queries and heads; 0 for an empty layer."""
    if row.keys.shape[1] == 0:
        return 0.0
    return float(torch.special.entr(_window_attention(row)).sum(-1).mean())


def _window_attention(row: Row) -> Tensor:
    """Attention of each head's newest queries, float32 [heads, queries, entries]."""
    assert row.queries is not None
    return attention_of(row.queries, row.keys, row.scaling).flatten(0, 1)


def _first_reaching(rising: Tensor, threshold: float) -> Tensor:
    """How many entries it takes to reach a threshold, [heads, entries] to int64 [heads]; all where rounding
    keeps the last below it."""
    reached = rising >= threshold
    reached[:, -1] = True
    return reached.int().argmax(-1) + 1
