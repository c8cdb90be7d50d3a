"""Eviction policies by name: which entries of a full cache stay."""

from __future__ import annotations

from videollm.eviction.base import EvictionPolicy, Row, attention_of
from videollm.eviction.expected_attention import ExpectedAttentionPolicy
from videollm.eviction.h2o import H2OPolicy
from videollm.eviction.key_similarity import KeySimilarityPolicy
from videollm.eviction.snapkv import SnapKVPolicy
from videollm.eviction.window import WindowPolicy

__all__ = ["POLICIES", "EvictionPolicy", "Row", "attention_of", "policy_named"]

POLICIES: dict[str, type[EvictionPolicy]] = {
    "snapkv": SnapKVPolicy,
    "window": WindowPolicy,
    "h2o": H2OPolicy,
    "expected_attention": ExpectedAttentionPolicy,
    "key_similarity": KeySimilarityPolicy,
}


def policy_named(name: str) -> EvictionPolicy:
    """The policy of that name as its paper has it. ValueError for a name that there is none of."""
    if name not in POLICIES:
        raise ValueError(f"there is no eviction policy {name!r}; there are {', '.join(POLICIES)}")
    return POLICIES[name]()
