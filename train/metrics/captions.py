"""How near sentences come to true ones: BLEU-4 and chrF of sacrebleu, ROUGE-L of rouge-score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from train.scoring import answering

Timed = Sequence[Any]  # seconds, text


def caption_scores(said: Sequence[str], true: Sequence[str]) -> dict[str, float]:
    """BLEU-4 and chrF of the corpus and the mean F-measure of ROUGE-L, each of 100; a sentence that was not
    said is empty. ValueError where there is nothing to score."""
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import BLEU, CHRF

    if not true or len(said) != len(true):
        raise ValueError(f"{len(said)} sentences said, {len(true)} true ones")
    rouge = RougeScorer(["rougeL"])
    return {
        "bleu_4": BLEU().corpus_score(list(said), [list(true)]).score,
        "chrf": CHRF().corpus_score(list(said), [list(true)]).score,
        "rouge_l": 100
        * sum(rouge.score(t, s)["rougeL"].fmeasure for s, t in zip(said, true, strict=True))
        / len(true),
    }


def answers_of(true: Sequence[Timed], said: Sequence[Timed]) -> tuple[list[str], int]:
    """What answers each true narration, empty where nothing does, and how many answer none.

    Which one answers is `train.scoring`'s rule.
    """
    found = answering([moment for moment, _ in true], [moment for moment, _ in said])
    answers = ["" if index is None else said[index][1] for index in found]
    return answers, len(said) - sum(index is not None for index in found)
