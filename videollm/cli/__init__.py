"""The command line. Imports of torch and transformers stay inside the commands, so that --help is quick."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated

import typer

from videollm.cli.ask import ask
from videollm.cli.bench import bench
from videollm.cli.bench_memory import cache, memory, rope
from videollm.cli.calibrate import calibrate
from videollm.cli.convert import convert
from videollm.cli.demo import demo
from videollm.cli.dialogues import dialogues
from videollm.cli.doctor import doctor
from videollm.cli.errors import complain, describe, explained
from videollm.cli.evaluate import evaluate
from videollm.cli.narrate import narrate
from videollm.cli.prepare import prepare
from videollm.cli.serve import serve
from videollm.cli.summarize import summarize
from videollm.cli.train import train

__all__ = ["app", "main"]

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode="rich")
SPEAKING = (narrate, ask, summarize, serve)
LEARNING = (calibrate, prepare, dialogues, train, evaluate, convert)
for command in (*SPEAKING, *LEARNING, doctor, demo):
    app.command()(command)
for command in (cache, rope, memory):
    bench.command()(command)
app.add_typer(bench, name="bench")


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"videollm {version('videollm')}")
        raise typer.Exit


@app.callback()
def videollm(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Watches a video as it plays: says what happens when it happens, and answers questions about it.

    \b
    Examples:
    videollm demo
    videollm narrate clip.mp4
    videollm ask clip.mp4 "What is in view?" --at 00:05
    """


def main() -> None:
    """The console entry: runs the command and exits with its code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # subtitles and JSON are UTF-8 whatever the locale says
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    # A service manager's stop unwinds like Ctrl-C does, so that files are closed whole.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line and give its exit code; errors come out as one line on standard error."""
    try:
        command = typer.main.get_command(app)
        with command.make_context("videollm", list(arguments)) as context:
            command.invoke(context)
        sys.stdout.flush()
    except typer.Exit as done:
        return done.exit_code
    except typer.TyperException as error:
        if message := error.format_message():  # empty where the help is the message
            complain(message)
        return error.exit_code
    except KeyboardInterrupt:
        complain("interrupted; what was written so far is kept")
        return 128 + signal.SIGINT
    except BrokenPipeError:
        _give_up_full_output()
        complain("whoever read the output went away")
        return 1
    except Exception as error:
        if not isinstance(error, explained()):
            raise
        _give_up_full_output()
        complain(describe(error))
        return 1
    return 0


def _give_up_full_output() -> None:
    """Python flushes standard output once more at exit: where that can't succeed, it must not be tried."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
