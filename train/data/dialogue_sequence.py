"""A dialogue over a video as one training sequence, in the layout that a session reads."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np

from train.data.annotations import Dialogue, Turn
from train.sequences import LossWeights, Sequence, StreamWriter
from videollm.prompt import Prompt

TOLERANCE = 1e-6  # frames; times are written in decimals, and 0.1 s at 10 fps is frame 1


def frame_range(dialogue: Dialogue, fps: float) -> range:
    """Indices of the dialogue's frames in its video, if it is that long."""
    return range(math.ceil(dialogue.start * fps - TOLERANCE), math.floor(dialogue.end * fps + TOLERANCE) + 1)


def dialogue_sequence(
    prompt: Prompt,
    dialogue: Dialogue,
    frames: np.ndarray,
    fps: float,
    weights: LossWeights | None = None,
    first: int = 0,
) -> Sequence:
    """The dialogue with the frames of its part of the video, as a session would read and say it.

    `frames` [frames, tokens, dim] are the video's, `fps` a second, from its frame `first` on. What the
    assistant says by itself is said after the first frame at or after its time, several things at one frame
    together; a question is asked after the last frame at or before its time, and answered at once. Each kind
    of target weighs 1 (VideoLLM-online's loss) where `weights` is None.

    Raises ValueError for a dialogue without frames or with turns that no frame of it shows, and for a
    question that isn't answered at its time.
    """
    shown = frame_range(dialogue, fps)
    begin, last = shown.start, min(shown.stop, first + len(frames)) - 1
    if last < begin:
        raise ValueError(
            f"{dialogue.video}: no frame between {dialogue.start:g} s and {dialogue.end:g} s; "
            f"there are {(first + len(frames)) / fps:g} s of frames"
        )
    narrated: dict[int, list[str]] = defaultdict(list)
    asked: dict[int, list[tuple[Turn, Turn]]] = defaultdict(list)
    turns = iter(dialogue.turns)
    for turn in turns:
        if not begin - 1 < turn.time * fps < last + 1:
            raise ValueError(
                f"{dialogue.video}: a turn at {turn.time:g} s, "
                f"but frames from {begin / fps:g} s to {last / fps:g} s"
            )
        if turn.role == "assistant":
            narrated[min(max(math.ceil(turn.time * fps - TOLERANCE), begin), last)].append(turn.text.strip())
            continue
        answer = next(turns, None)
        if answer is None or answer.role != "assistant" or answer.time != turn.time:
            raise ValueError(f"{dialogue.video}: the question at {turn.time:g} s isn't answered at its time")
        asked[math.floor(turn.time * fps + TOLERANCE)].append((turn, answer))

    stream = StreamWriter(prompt, weights or LossWeights())
    for index in range(begin - 1, last + 1):
        if index >= begin:
            stream.frame(frames[index - first], speaks=index in narrated)
        if index in narrated:
            stream.narrate(" ".join(narrated[index]))
        for question, answer in asked.get(index, []):
            stream.answer(question.text, answer.text)
    return stream.sequence
