"""JSON files of annotation, decoded to what a reader declares."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")


class Name(str):
    """The name of a video as a key of a JSON object, where it may stand once."""

    __slots__ = ()


def decode_file(path: Path, declared: type[T], what: str) -> T:
    """The file as a `declared` type. It is mapped, not read, for Ego4D's narrations have a gigabyte.

    Raises ValueError naming the file, and where in it, for one that is not `what` the reader reads, is not
    UTF-8, or has a `Name` twice; OSError for one that can't be read.
    """
    names: set[str] = set()

    def once(_: type, name: Any) -> Name:
        if name in names:
            raise ValueError(f"the video {name!r} is listed twice")
        names.add(name)
        return Name(name)

    with path.open("rb") as file:
        if not path.stat().st_size:
            raise ValueError(f"{path} is empty; {what} is wanted")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return msgspec.json.decode(data, type=declared, dec_hook=once)
            except msgspec.ValidationError as error:
                raise ValueError(f"{path} is not {what} of a version known here: {error}") from error
            except UnicodeDecodeError as error:
                raise ValueError(f"{path} is not UTF-8 text") from error
            except msgspec.DecodeError as error:
                raise ValueError(f"{path} is not whole JSON ({error}); get it again") from error


def once_each(names: list[str], path: Path) -> None:
    """Raise ValueError for a list of videos that names one twice."""
    seen: set[str] = set()
    for number, name in enumerate(names):
        if name in seen:
            raise ValueError(f"{path}: the video {name!r} is listed twice, the second time as entry {number}")
        seen.add(name)


def decode_lines(path: Path, declared: type[T]) -> Iterator[tuple[int, T]]:
    """The file's lines with their numbers, empty ones left out.

    Raises ValueError naming file and line for one that is not UTF-8 JSON of the `declared` type.
    """
    decoder = msgspec.json.Decoder(declared)
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                yield number, decoder.decode(line)
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}, line {number}: not UTF-8 text") from error
            except msgspec.DecodeError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
