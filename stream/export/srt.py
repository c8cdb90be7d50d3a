"""SubRip subtitles."""

from __future__ import annotations

from pathlib import Path
from typing import TextIO

from stream.export.cues import Cue, CueWriter
from stream.export.times import timestamp


class SrtWriter(CueWriter):
    def __init__(self, target: Path | TextIO) -> None:
        super().__init__(target)
        self._number = 0

    def block(self, cue: Cue) -> str:
        self._number += 1
        # SubRip has no escapes; an arrow in the text would read as the line of times.
        text = "\n".join(cue.lines).replace("-->", "→")
        return f"{self._number}\n{timestamp(cue.start, ',')} --> {timestamp(cue.end, ',')}\n{text}\n\n"
