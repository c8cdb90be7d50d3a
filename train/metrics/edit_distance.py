"""Edit distance of long-term anticipation on Ego4D (CVPR 2022, appendix on forecasting): ED@Z, Z = 20."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from rapidfuzz.distance import Levenshtein


def edit_distance(predictions: Sequence[Sequence[Hashable]], truth: Sequence[Hashable]) -> float:
    """The least distance of K predicted sequences from the true one of Z actions, divided by Z.

    The paper names Damerau-Levenshtein; what the benchmark's own code and its leaderboard compute is plain
    Levenshtein (insert, delete, replace), and so does this. ValueError for a prediction of another length.
    """
    if not truth or not predictions:
        raise ValueError("there is nothing to compare: no predicted sequence, or no true one")
    for prediction in predictions:
        if len(prediction) != len(truth):
            raise ValueError(f"a predicted sequence of {len(prediction)} actions, but {len(truth)} are true")
    return min(Levenshtein.distance(prediction, truth) for prediction in predictions) / len(truth)
