"""Options that several of this room's commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Data = Annotated[Path, typer.Option(help="folder with the tar files of pictures and clips")]
Work = Annotated[Path, typer.Option(help="where features and stages are kept")]
Clips = Annotated[int, typer.Option(help="number of composed clips to learn from")]
Albums = Annotated[int, typer.Option(help="number of albums of single frames; half as many show changes")]
NamingSteps = Annotated[int, typer.Option(help="steps of slide shows")]
ClipSteps = Annotated[int, typer.Option(help="steps of composed clips")]
