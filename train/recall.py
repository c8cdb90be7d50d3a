"""What recall is worth: `python -m train.recall --data FOLDER`.

Composed clips never trained on, strung together to streams several times as long as the context. Of each of
the clips of the first minutes one question is asked in three ways: when the clip has just ended, in the words
that training used; and at the stream's end about then, by its time ("What was in view at 00:17?") or by its
thing ("Where was the cup?"), with a journal and without. "What came first?" is asked at the end alike.
"""

from __future__ import annotations

import copy
import itertools
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
from videollm.cli.loading import load_engine

TOGETHER = 8
KINDS = ("in view", "where", "is there", "left")


@dataclass(frozen=True)
class Asked:
    """A question about an early moment: as it is asked then, and as it is at the end."""

    time: float
    then: Question
    later: str


def stream(media: Media, seed: int) -> Iterator[Composition]:
    """Clips of consecutive seeds, without end."""
    return (compose(media, seed + number) for number in itertools.count())


def questions_of(clips: list[Composition], rng: np.random.Generator) -> Iterator[Asked]:
    """One of each clip of a stream, at its end, about what is or was in that clip; the kinds take turns. And
    what came first, of the stream."""
    start, came = 0, False
    for number, clip in enumerate(clips):
        last = len(clip.frames) - 1
        last -= (start + last) % 2 == 0  # so that the clip is seen to the end of the second that is asked for
        time = (start + last) / FPS
        options = {question.kind: question for question in questions(clip, last, rng)}
        # What left, and whether something is not there, is asked of things of this clip alone.
        fitting = [
            options[kind] for kind in KINDS if kind in options and (options[kind].names or kind == "in view")
        ]
        if fitting:
            question = fitting[number % len(fitting)]
            yield Asked(time, question, later(question, time))
        if "first" in options and not came:
            came = True
            yield Asked(time, options["first"], options["first"].text)
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
    minutes: Annotated[float, typer.Option(help="of a stream")] = 3.5,
    early: Annotated[float, typer.Option(help="minutes at its beginning that questions are about")] = 1.4,
    budget: Annotated[str | None, typer.Option(help="of the cache, as `narrate --budget`")] = None,
    model: Annotated[str, typer.Option(help="the model to measure")] = "pocket",
    out: Annotated[Path | None, typer.Option(help="write everything asked and said to this file")] = None,
) -> None:
    """Ask about early moments: at once, and at the stream's end with a journal and without."""
    if early >= minutes:
        raise typer.BadParameter("the stream is no longer than its beginning", param_hint="--minutes")
    media, vocabulary = load_media(data, "heldout"), load_vocabulary()
    engine = load_engine(model, "auto", budget)
    rows = []
    for number in track(range(streams), "streams"):
        with tempfile.TemporaryDirectory() as folder, Journal(Path(folder) / "journal") as journal:
            session = Session(engine.model, engine=engine, journal=journal)
            rows += _ask_all(session, media, number, (minutes, early), vocabulary)
            engine.leave(session.slot)
    right: Counter[tuple[str, str]] = Counter()
    total: Counter[str] = Counter()
    for row in rows:
        for kind in (row["kind"], "all"):
            total[kind] += 1
            right.update((kind, way) for way, good in row["right"].items() if good)
    print(f"{machine()['cpu']}; {streams} streams of {minutes:g} min, budget {budget or 'none'}\n")
    print("| kind | asked | at once | later, with the journal | later, without |")
    print("| --- | --- | --- | --- | --- |")
    for kind, count in sorted(total.items(), key=lambda row: row[1]):
        shares = [f"{right[kind, way] / count:.1%}" for way in ("at once", "recalled", "forgotten")]
        print(f"| {' | '.join([kind, str(count), *shares])} |")
    if out:
        out.write_text(json.dumps(rows, indent=1) + "\n")


def _ask_all(
    session: Session, media: Media, number: int, spans: tuple[float, float], vocabulary: Vocabulary
) -> list[dict]:
    length, early = (round(60 * span * FPS) for span in spans)  # frames
    clips = stream(media, CLIP_SEED + 1000 * number)
    begin: list[Composition] = []
    while sum(len(clip.frames) for clip in begin) < early:
        begin.append(next(clips))
    asked = list(questions_of(begin, np.random.default_rng(number)))
    pixels = (picture for clip in itertools.chain(begin, clips) for picture in clip.frames)
    frames = (Frame(index / FPS, picture) for index, picture in enumerate(pixels))
    at_once: dict[int, str] = {}
    watched = 0
    for end in (*sorted({round(entry.time * FPS) + 1 for entry in asked}), length):
        while watched < end:
            session.step(*itertools.islice(frames, min(TOGETHER, end - watched)))
            watched = min(watched + TOGETHER, end)
        at_once |= {
            index: ask(session, entry.then.text, recalling=False)
            for index, entry in enumerate(asked)
            if round(entry.time * FPS) + 1 == end
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
