"""The four metrics on composed clips, whose narrations are known to the frame."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from statistics import mean

import numpy as np
from torch import Tensor

from train.compose import FPS, Composition
from train.data.annotations import Dialogue, Turn
from train.data.dialogue_sequence import dialogue_sequence
from train.evaluation import dialogues
from train.evaluation.feature_stream import FeatureStream
from train.language import narration
from train.metrics.streaming import METRICS, mean_scores
from train.sequences import by_frame
from videollm.modeling import VideoLLM


def composed_dialogue(clip: Composition) -> Dialogue:
    """What a clip's narrator says: each moment's happenings at once, at its frame."""
    turns = tuple(
        Turn(index / FPS, "assistant", narration(happenings))
        for index, happenings in sorted(by_frame(clip.happenings, FPS).items())
    )
    return Dialogue(f"composed {clip.seed}", 0.0, (len(clip.sights) - 1) / FPS, turns)


def composed_metrics(
    model: VideoLLM,
    clips: Iterable[tuple[Composition, np.ndarray]],
    embed: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, float]:
    """LM-PPL, TimeDiff in seconds, Fluency and LM-Correctness, means over clips in which something happens.

    Clips come with their features [frames, tokens, dim]: the vision tower's, or what `embed` makes frame
    tokens of. ValueError where nothing happens in any.
    """
    stream = FeatureStream(model, embed)
    found = []
    for clip, features in clips:
        if clip.happenings:
            sequence = dialogue_sequence(stream.prompt, composed_dialogue(clip), features, FPS)
            found.append(mean_scores(dialogues.score(stream, sequence, FPS, model.config.threshold)))
    if not found:
        raise ValueError("nothing happens in any of the clips")
    return {name: mean(scores[name] for scores in found) for name in METRICS}
