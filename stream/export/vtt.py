"""WebVTT subtitles."""

from __future__ import annotations

from stream.export.cues import Cue, CueWriter
from stream.export.times import timestamp


class VttWriter(CueWriter):
    opening = "WEBVTT\n\n"

    def block(self, cue: Cue) -> str:
        text = "\n".join(cue.lines).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        return f"{timestamp(cue.start, '.')} --> {timestamp(cue.end, '.')}\n{text}\n\n"
