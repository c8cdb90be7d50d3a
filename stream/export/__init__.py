"""Writers for what was said: one file a format."""

from __future__ import annotations

from pathlib import Path
from typing import TextIO

from stream.export.jsonl import JsonlWriter
from stream.export.markdown import MarkdownWriter
from stream.export.srt import SrtWriter
from stream.export.text import TextWriter
from stream.export.vtt import VttWriter
from stream.export.writer import Writer

__all__ = ["FORMATS", "Writer", "format_of", "writer_for"]

FORMATS: dict[str, type[Writer]] = {
    "text": TextWriter,
    "jsonl": JsonlWriter,
    "srt": SrtWriter,
    "vtt": VttWriter,
    "md": MarkdownWriter,
}
_SUFFIXES = {f".{name}": name for name in FORMATS} | {".txt": "text", ".markdown": "md"}


def writer_for(format: str, target: Path | TextIO) -> Writer:
    """An open writer of that format (a key of `FORMATS`). Raises ValueError and OSError."""
    if format not in FORMATS:
        raise ValueError(f"there is no format {format!r}; choose one of {', '.join(FORMATS)}")
    return FORMATS[format](target)


def format_of(path: Path) -> str:
    """The format that a file's suffix asks for. Raises ValueError where it says nothing."""
    try:
        return _SUFFIXES[path.suffix.lower()]
    except KeyError:
        raise ValueError(
            f"{path.name} does not say its format; choose one of {', '.join(FORMATS)} with --format"
        ) from None
