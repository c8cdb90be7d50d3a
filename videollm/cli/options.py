"""Options that several commands share."""

from __future__ import annotations

import re
from typing import Annotated

import typer

_BYTES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY_BYTES = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]i?|)b?", re.IGNORECASE | re.ASCII)


def parse_size(text: str) -> int:
    """Bytes of a size such as 500MB, 2GB or 1.5GiB. Raises typer.BadParameter."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise typer.BadParameter(f"{text!r} is no size; write it as 500MB or 2GB")
    return int(float(match[1]) * (_BYTES | _BINARY_BYTES)[match[2].lower()])


SOURCES = "A video file, camera:0, rtsp://..., a folder of pictures, or - for standard input."
Source = Annotated[str, typer.Argument(metavar="SOURCE", help=SOURCES, show_default=False)]
Fps = Annotated[float, typer.Option("--fps", min=0.01, max=60, help="Frames a second to look at.")]
Threshold = Annotated[
    float | None,
    typer.Option(
        "--threshold",
        min=0,
        max=1,
        help="Speak when the model is less sure than this that nothing happens; lower is quieter. "
        "By default the model's own.",
        show_default=False,
    ),
]
Model = Annotated[str, typer.Option("--model", help="pocket, a folder, or a hub id (owner/name).")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
Budget = Annotated[
    str | None,
    typer.Option(
        "--budget",
        metavar="SHARE",
        help="How much of a full context the stream remembers, 20% or a number of tokens, chosen by what the "
        "model attends to. Memory is fixed then, and the stream may last for hours. "
        "By default a full context begins anew.",
        show_default=False,
    ),
]
Ray = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help="Share the work out over a Ray cluster: its address, auto for the one here, or local to start "
        "one on this machine. Paths must be the same on all of its machines.",
        show_default=False,
    ),
]


JournalSize = Annotated[
    int,
    typer.Option(
        "--journal-size",
        parser=parse_size,
        metavar="SIZE",
        help="The most that a journal may take on the disk; older frames are thinned.",
    ),
]
