"""Dialogues of a stream from annotation that was made offline: narrations as they happen, and questions.

Narrations are VideoLLM-online's (CVPR 2024): each is said at the first frame at or after its time. Questions
come at random frames, with answers that the annotation gives (`train/data/questions.py`).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from random import Random

import msgspec

from train.data import questions as templates
from train.data.annotations import AnnotatedVideo, Dialogue, Turn
from train.data.readers.decoding import decode_lines
from videollm.files import write_whole

TOLERANCE = 1e-6  # frames; times are written in decimals, and 0.1 s at 10 fps is frame 1


class Exchange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A question and its answer, at its time in the video in seconds."""

    time: float
    question: str
    answer: str


def narration_dialogues(videos: Iterable[AnnotatedVideo], fps: float, window: float) -> list[Dialogue]:
    """The videos' narrations, cut into windows of at most `window` seconds at `fps` frames a second.

    What falls on one frame is one turn, and what repeats the one before it is left out. Windows follow each
    other from the video's beginning on, or from the first narration where that comes later than a window,
    until the last thing is over; those without any hold nothing to learn, for an annotation's gap is not a
    silence. Raises ValueError for a window shorter than a frame.
    """
    length = math.floor(window * fps + TOLERANCE)  # frames
    if length < 1:
        raise ValueError(
            f"a window of {window:g} s holds no frame at {fps:g} frames a second; give a longer one"
        )
    return [dialogue for video in videos for dialogue in _windows(video, fps, length)]


def _windows(video: AnnotatedVideo, fps: float, length: int) -> list[Dialogue]:
    last = math.inf if video.duration is None else max(math.floor(video.duration * fps + TOLERANCE) - 1, 0)

    def frame(time: float) -> int:
        return int(min(math.ceil(time * fps - TOLERANCE), last))

    said: dict[int, list[str]] = defaultdict(list)
    previous = None
    for segment in video.segments:
        text = templates.sentence(segment.text)
        if text != previous:
            said[frame(segment.start)].append(text)
        previous = text
    if not said:
        return []
    first = min(said) if min(said) >= length else 0
    over = max(frame(segment.start if segment.end is None else segment.end) for segment in video.segments)
    turns: dict[int, list[Turn]] = defaultdict(list)
    for index, texts in said.items():
        turns[(index - first) // length].append(
            Turn(index / fps, "assistant", " ".join(dict.fromkeys(texts)))
        )
    dialogues = []
    for number, inside in turns.items():
        begin = first + number * length
        end = min(begin + length - 1, over)
        dialogues.append(Dialogue(video.video, begin / fps, end / fps, tuple(inside)))
    return dialogues


def question_dialogues(
    videos: Iterable[AnnotatedVideo], fps: float, window: float, questions: int, seed: int
) -> list[Dialogue]:
    """The narration dialogues with up to `questions` questions in each, at random frames; the same again for
    the same seed, whatever the other videos are."""
    asked = []
    for video in videos:
        for dialogue in narration_dialogues([video], fps, window):
            random = Random(f"{seed} {video.video} {dialogue.start:g}")
            asked.append(_with_questions(dialogue, video, fps, questions, random))
    return asked


def _with_questions(
    dialogue: Dialogue, video: AnnotatedVideo, fps: float, questions: int, random: Random
) -> Dialogue:
    first, last = round(dialogue.start * fps), round(dialogue.end * fps)
    exchanges = []
    for frame in random.sample(range(first, last + 1), min(questions, last + 1 - first)):
        pair = templates.ask(random, frame / fps, dialogue.start, video)
        if pair is not None:
            exchanges.append(Exchange(frame / fps, *pair))
    return with_exchanges(dialogue, dialogue.turns, exchanges)


def with_exchanges(dialogue: Dialogue, narrated: Iterable[Turn], exchanges: Iterable[Exchange]) -> Dialogue:
    """The dialogue with these turns; at one frame what is narrated comes first."""
    turns = list(narrated)
    for exchange in exchanges:
        turns.append(Turn(exchange.time, "user", exchange.question))
        turns.append(Turn(exchange.time, "assistant", exchange.answer))
    return replace(dialogue, turns=tuple(sorted(turns, key=lambda turn: turn.time)))


def part(dialogue: Dialogue) -> tuple[list[Turn], list[Exchange]]:
    """What the dialogue narrates, and what is asked and answered in it."""
    narrated, exchanges = [], []
    turns = iter(dialogue.turns)
    for turn in turns:
        if turn.role == "user":
            exchanges.append(Exchange(turn.time, turn.text, next(turns).text))
        else:
            narrated.append(turn)
    return narrated, exchanges


def as_lines(dialogues: Iterable[Dialogue]) -> bytes:
    """JSON lines, one dialogue a line."""
    return msgspec.json.Encoder().encode_lines(list(dialogues))


def write_dialogues(path: Path, dialogues: Iterable[Dialogue]) -> None:
    """Write them as JSON lines, whole or not at all."""
    write_whole(path, as_lines(dialogues))


def read_dialogues(path: Path) -> list[Dialogue]:
    """Read what `write_dialogues` wrote. Raises ValueError naming file and line for what is none."""
    return [dialogue for _, dialogue in decode_lines(path, Dialogue)]
