"""`videollm dialogues`: what a model is to be trained to say, from annotation."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from train.data.readers import READERS, read_annotation
from videollm.cli.errors import CommandError

if TYPE_CHECKING:
    from train.data.annotations import AnnotatedVideo, Dialogue, Skipped

KEY = "VIDEOLLM_LLM_KEY"
PREPARED = "prepared"


def dialogues(
    kind: Annotated[
        str,
        typer.Argument(
            help=f"What the annotation is: {', '.join(READERS)}, or {PREPARED}, a folder of videollm prepare."
        ),
    ],
    annotation: Annotated[Path, typer.Argument(help="The annotation's file, or the prepared folder.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="JSON lines to write; by default they are printed."),
    ] = None,
    fps: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            max=60,
            help="Frames a second; by default the prepared folder's, or 2.",
            show_default=False,
        ),
    ] = None,
    window: Annotated[
        float, typer.Option(min=0.01, max=86400, help="The longest dialogue, in seconds.")
    ] = 60.0,
    questions: Annotated[int, typer.Option(min=0, help="The most questions in a dialogue.")] = 2,
    seed: Annotated[int, typer.Option(help="Of the questions and their times.")] = 0,
    llm: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="An OpenAI-compatible endpoint, whose language model writes the questions and answers anew. "
            f"Its key is taken from {KEY}.",
        ),
    ] = None,
    llm_model: Annotated[
        str | None, typer.Option("--llm-model", metavar="NAME", help="The endpoint's name of it.")
    ] = None,
) -> None:
    """Make dialogues from an annotation: narrations at their moments, and questions that it answers.

    \b
    Examples:
    videollm dialogues coin COIN.json | head
    videollm dialogues prepared runs/coin --out coin.jsonl --questions 4
    videollm dialogues coin COIN.json --out chat.jsonl --llm http://localhost:8000/v1 --llm-model qwen
    """
    if (llm is None) != (llm_model is None):
        raise typer.BadParameter("--llm and --llm-model go together", param_hint="--llm")
    from train.data.annotations import Skipped
    from train.data.dialogues import as_lines, question_dialogues, write_dialogues

    skipped = Skipped()
    try:
        videos, rate = _annotated(kind, annotation, fps, skipped)
        made = question_dialogues(videos, rate, window, questions, seed)
    except ValueError as error:
        raise CommandError(str(error)) from error
    if llm and llm_model:
        made = _rewritten(made, llm, llm_model, rate, skipped)
    if out:
        write_dialogues(out, made)
    else:
        sys.stdout.write(as_lines(made).decode())
    asked = sum(turn.role == "user" for each in made for turn in each.turns)
    console = Console(stderr=True)
    console.print(f"{len(made)} dialogues of {len({each.video for each in made})} videos, {asked} questions")
    if skipped.counts:
        console.print(f"left out: {skipped}", markup=False, highlight=False)


def _annotated(
    kind: str, annotation: Path, fps: float | None, skipped: Skipped
) -> tuple[list[AnnotatedVideo], float]:
    if kind == PREPARED:
        from train.data.shards import Shards

        shards = Shards(annotation)
        skipped.update(shards.skipped)
        return shards.annotation, fps or shards.fps
    if kind not in READERS:
        raise CommandError(f"there is no reader {kind!r}; there are {', '.join(READERS)} and {PREPARED}")
    return read_annotation(kind, annotation, skipped), fps or 2.0


def _rewritten(made: list[Dialogue], url: str, model: str, fps: float, skipped: Skipped) -> list[Dialogue]:
    from train.data.rewriting import Endpoint, rewritten
    from videollm.bases import cache_folder

    # Servers of one's own want none, but the client library wants to send one.
    endpoint = Endpoint(url, model, os.environ.get(KEY) or "none", cache_folder() / "dialogues")
    console = Console(stderr=True)
    columns = TextColumn("writing"), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(made))
        return rewritten(made, endpoint, fps, skipped, lambda: progress.advance(task))
