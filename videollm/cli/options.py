"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="A video file, camera:0, rtsp://..., a folder of pictures, or - for standard input.",
        show_default=False,
    ),
]
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
