"""What `summarize` leaves of a clip: Markdown, JSON and a contact sheet, complete or not there."""

from __future__ import annotations

import io
from collections import deque
from pathlib import Path
from typing import Self
from urllib.parse import quote

import msgspec
from PIL import Image

from stream.export.contact_sheet import ContactSheet
from stream.export.markdown import escaped, item
from stream.export.times import format_time
from stream.frames import Event, Frame
from videollm.cli.play import MOST_TOGETHER
from videollm.files import write_whole


class Clip(msgspec.Struct, frozen=True):
    """Which file it was: a changed file is another clip."""

    path: str
    bytes: int
    modified: float

    @classmethod
    def of(cls, path: Path) -> Self:
        facts = path.stat()
        return cls(str(path.resolve()), facts.st_size, facts.st_mtime)


class Settings(msgspec.Struct, frozen=True):
    model: str
    fps: float
    threshold: float | None
    budget: str | None = None


class Summary(msgspec.Struct, frozen=True):
    clip: Clip
    settings: Settings
    duration: float
    events: list[Event]


class Recorder:
    """Keeps what was said about one clip, and the frames it was said at."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        # What is said of frames that are read together comes when all of them are seen.
        self._seen: deque[Frame] = deque(maxlen=MOST_TOGETHER)
        self._sheet = ContactSheet()

    @property
    def time(self) -> float:
        """The time of the last frame, in seconds."""
        return self._seen[-1].time if self._seen else 0.0

    def seen(self, frame: Frame) -> None:
        self._seen.append(frame)

    def said(self, event: Event) -> None:
        self.events.append(event)
        if self._seen and event.kind in ("narration", "answer"):
            past = [frame for frame in self._seen if frame.time <= event.time]
            self._sheet.add(past[-1] if past else self._seen[0], event.text)

    def contact_sheet(self) -> Image.Image:
        """The frames at which something was said; the last frame where nothing was."""
        if self._seen and not self._sheet:
            self._sheet.add(self._seen[-1], "")
        return self._sheet.image()


def read_summary(folder: Path, name: str) -> Summary | None:
    """The finished summary of that name, if there is one."""
    try:
        return msgspec.json.decode((folder / f"{name}.json").read_bytes(), type=Summary)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def is_finished(folder: Path, name: str, clip: Path, settings: Settings) -> bool:
    """Whether this very clip was summarized there with these settings."""
    there = read_summary(folder, name)
    return there is not None and clip.is_file() and (there.clip, there.settings) == (Clip.of(clip), settings)


def write_summary(folder: Path, name: str, summary: Summary, contact_sheet: Image.Image) -> None:
    """Write `name`.png, `name`.md and, as the mark that both are there, `name`.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").unlink(missing_ok=True)
    picture = io.BytesIO()
    contact_sheet.save(picture, "PNG")
    write_whole(folder / f"{name}.png", picture.getvalue())
    write_whole(folder / f"{name}.md", _markdown(summary, f"{name}.png").encode())
    write_whole(folder / f"{name}.json", msgspec.json.format(msgspec.json.encode(summary)) + b"\n")


def _markdown(summary: Summary, contact_sheet: str) -> str:
    lines = "".join(item(event) for event in summary.events) or "Nothing was said.\n"
    return (
        f"# {escaped(Path(summary.clip.path).name)}\n\n"
        f"{format_time(summary.duration)} long, looked at {summary.settings.fps:g} times a second "
        f"with {escaped(summary.settings.model)}.\n\n"
        f"![Contact sheet]({quote(contact_sheet)})\n\n"
        f"{lines}"
    )
