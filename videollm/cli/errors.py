"""What goes wrong, as one line for the person at the keyboard."""

from __future__ import annotations

import errno
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stream.sources import Source

# Modules are looked up, not imported: one that is not loaded has raised nothing, and torch takes seconds.
_EXPLAINED = (
    ("stream.sources.base", "SourceError"),
    ("stream.journal.database", "JournalError"),
    ("videollm.bases", "CheckpointError"),
    ("train.data.shards", "ShardError"),
    ("train.trainer", "TrainingError"),
    ("train.data.rewriting", "EndpointError"),
    ("av", "FFmpegError"),
    ("torch", "OutOfMemoryError"),
)


class CommandError(Exception):
    """A command cannot go on; the message is one line that says what to do."""


def explained() -> tuple[type[Exception], ...]:
    """The exceptions whose message is meant for people."""
    loaded = ((sys.modules.get(module), name) for module, name in _EXPLAINED)
    return OSError, CommandError, *(getattr(module, name) for module, name in loaded if hasattr(module, name))


def describe(error: BaseException) -> str:
    """The error as one line."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        kept = f"; what was said before is saved in {error.filename}" if error.filename else ""
        return f"the disk is full{kept}; make room and run the command again"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def check_whole(source: Source) -> None:
    """Raise CommandError where a source that was read turned out damaged: what it held was used."""
    if source.problem is not None:
        raise CommandError(f"{source.name}: {source.problem}")


def complain(message: str) -> None:
    """Print one line on standard error."""
    print(f"videollm: {' '.join(message.split())}", file=sys.stderr)
