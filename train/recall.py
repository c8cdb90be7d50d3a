"""What recall is worth: `python -m train.recall --data FOLDER`.

Composed clips never trained on, strung together to streams several times as long as the context. Of each of
the early clips one question is asked in three ways: when the clip has just ended, in the words that training
used; and at the stream's end about then, by its time ("What was in view at 00:17?") or by its thing ("Where
was the cup?"), with a journal and without. "What came first?" is asked at the end alike.
"""

from __future__ import annotations

import copy
import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.progress import track

from stream.export.times import format_time
from stream.frames import Frame
from stream.journal import Journal
from stream.session import Session
from train.benchmark import CLIP_SEED, machine
from train.compose import FPS, Composition, compose
from train.language import Question, answers, questions
from train.media import Media, load_media
from train.options import Data
from train.vocabulary import Vocabulary, load_vocabulary
from videollm.cli.loading import load_session

FRAMES = 420  # three and a half minutes: more than two contexts
EARLY_SHARE = 0.4  # of the stream: forgotten at its end
TOGETHER = 8
KINDS = ("in view", "where", "is there", "left")


@dataclass(frozen=True)
class Asked:
    """A question about an early moment: as it is asked then, and as it is at the end."""

    time: float
    then: Question
    later: str


def stream(media: Media, seed: int) -> list[Composition]:
    """Clips of consecutive seeds, `FRAMES` frames or a little more."""
    clips: list[Composition] = []
    while sum(len(clip.frames) for clip in clips) < FRAMES:
        clips.append(compose(media, seed + len(clips)))
    return clips


def early_questions(clips: list[Composition], rng: np.random.Generator) -> Iterator[Asked]:
    """One of each early clip, at its end, about what is or was in that clip; the kinds take turns."""
    start = 0
    for number, clip in enumerate(clips):
        last = len(clip.frames) - 1
        last -= (start + last) % 2 == 0  # so that the clip is seen to the end of the second that is asked for
        if start + last > EARLY_SHARE * FRAMES:
            return
        options = {question.kind: question for question in questions(clip, last, rng)}
        # What left, and whether something is not there, is asked of things of this clip alone.
        fitting = [
            options[kind] for kind in KINDS if kind in options and (options[kind].names or kind == "in view")
        ]
        if fitting:
            question = fitting[number % len(fitting)]
            time = (start + last) / FPS
            yield Asked(time, question, later(question, time))
        start += len(clip.frames)


def later(question: Question, time: float) -> str:
    """The question as it is asked at the stream's end."""
    text = re.sub(r"\b(is|are)\b", lambda verb: {"is": "was", "are": "were"}[verb[0].lower()], question.text)
    text = re.sub(r"^(Is|Are)\b", lambda verb: {"Is": "Was", "Are": "Were"}[verb[0]], text)
    text = re.sub(r"^Do\b", "Did", text).replace("do you", "did you").replace(" now", "").rstrip("?")
    return f"{text}?" if question.kind in ("where", "is there") else f"{text} at {format_time(time)}?"


def ask(session: Session, question: str, recalling: bool) -> str:
    """The answer of a session that goes on as if it had not been asked, with its journal or without."""
    shared = {id(part): part for part in (session.model, session.journal)}
    fork = copy.deepcopy(session, shared | {id(session._keeper): None})
    fork.journal = session.journal if recalling else None
    fork.ask(question)
    return fork.finish()[-1].text


def main(
    data: Data,
    streams: Annotated[int, typer.Option(help="so many streams")] = 8,
    model: Annotated[str, typer.Option(help="the model to measure")] = "pocket",
    out: Annotated[Path | None, typer.Option(help="write everything asked and said to this file")] = None,
) -> None:
    """Ask about early moments: at once, and at the stream's end with a journal and without."""
    media, vocabulary = load_media(data, "heldout"), load_vocabulary()
    session = load_session(model, "auto")
    rows = []
    for number in track(range(streams), "streams"):
        with tempfile.TemporaryDirectory() as folder, Journal(Path(folder) / "journal") as journal:
            watched = Session(session.model, journal=journal)
            rows += _ask_all(watched, media, number, vocabulary)
    right: Counter[tuple[str, str]] = Counter()
    total: Counter[str] = Counter()
    for row in rows:
        for kind in (row["kind"], "all"):
            total[kind] += 1
            right.update((kind, way) for way, good in row["right"].items() if good)
    print(f"{machine()['cpu']}; {streams} streams of {FRAMES / FPS:.0f} s\n")
    print("| kind | asked | at once | later, with the journal | later, without |")
    print("| --- | --- | --- | --- | --- |")
    for kind, count in total.items():
        shares = [f"{right[kind, way] / count:.1%}" for way in ("at once", "recalled", "forgotten")]
        print(f"| {' | '.join([kind, str(count), *shares])} |")
    if out:
        out.write_text(json.dumps(rows, indent=1) + "\n")


def _ask_all(session: Session, media: Media, number: int, vocabulary: Vocabulary) -> list[dict]:
    clips = stream(media, CLIP_SEED + 1000 * number)
    rng = np.random.default_rng(number)
    asked = list(early_questions(clips, rng))
    first = next(
        question
        for clip in clips
        for question in questions(clip, len(clip.frames) - 1, rng)
        if question.kind == "first"
    )
    came = next(
        index / FPS for index, sights in enumerate(s for clip in clips for s in clip.sights) if sights
    )
    asked.append(Asked(max(came, asked[0].time), first, "What came first?"))
    frames = [
        Frame(index / FPS, pixels) for index, pixels in enumerate(p for clip in clips for p in clip.frames)
    ]
    at_once: dict[int, str] = {}
    ends = sorted({entry.time for entry in asked} | {frames[-1].time})
    begun = 0
    for end in ends:
        due = [frame for frame in frames[begun:] if frame.time <= end]
        for at in range(0, len(due), TOGETHER):
            session.step(*due[at : at + TOGETHER])
        begun += len(due)
        at_once |= {
            index: ask(session, entry.then.text, recalling=False)
            for index, entry in enumerate(asked)
            if entry.time == end
        }
    rows = []
    for index, entry in enumerate(asked):
        said = {
            "at once": at_once[index],
            "recalled": ask(session, entry.later, recalling=True),
            "forgotten": ask(session, entry.later, recalling=False),
        }
        good = {way: answers(entry.then, text, vocabulary) for way, text in said.items()}
        rows.append(
            {
                "kind": entry.then.kind,
                "time": entry.time,
                "question": entry.later,
                "expected": entry.then.answer,
                "said": said,
                "right": good,
            }
        )
    return rows


if __name__ == "__main__":
    typer.run(main)
