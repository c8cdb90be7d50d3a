"""What a generated text says, of a closed set of labels."""

from __future__ import annotations

from collections.abc import Sequence

from rapidfuzz import process
from rapidfuzz.distance import Levenshtein


def nearest_label(text: str, labels: Sequence[str]) -> int:
    """The index of the label that a text is nearest to in edits; the first of several.

    VideoLLM-online maps answers on COIN so (its evaluator's fuzzy match).
    """
    best = process.extractOne(text, labels, scorer=Levenshtein.distance, processor=None)
    return int(best[2])
