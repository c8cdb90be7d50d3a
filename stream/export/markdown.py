"""Markdown: a list with the time of every event."""

from __future__ import annotations

import re

from stream.export.times import format_time
from stream.export.wording import one_line
from stream.export.writer import Writer
from stream.frames import Event

_SPECIAL = re.compile(r"([\\`*_\[\]<>&|])")


def escaped(text: str) -> str:
    """The text with everything Markdown would take as markup escaped."""
    return _SPECIAL.sub(r"\\\1", text)


def item(event: Event) -> str:
    """The event as one list item, with its line end."""
    return f"- **{format_time(event.time)}** {escaped(one_line(event))}\n"


class MarkdownWriter(Writer):
    opening = "# Narration\n\n"

    def write(self, event: Event) -> None:
        self._sink.write(item(event))
