"""The server's own sources, which `videollm serve --source` offers, read in threads for sessions that watch.

A client says a name and nothing else; what it stands for is known to the server alone.
"""

from __future__ import annotations

import io
import logging
import re
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from stream.frames import Frame
from stream.sources import Source, SourceError, open_source
from ui.protocol import MAX_SOURCE_CHARS, ErrorCode, NoticeCode, ProtocolError
from ui.settings import SettingsError

# Sessions choose among these pictures by their own `fps`, and the page shows them all.
READ_FPS = 10.0
JPEG_QUALITY = 85
LIVE_SCHEMES = ("rtp", "rtsp", "rtsps", "rtmp", "rtmps", "srt", "udp")
LOOK_SECONDS = 0.25  # a reader that waits looks so often whether it is still wanted
CLOSE_SECONDS = 2.0
_NAME = re.compile(rf"[\w-]{{1,{MAX_SOURCE_CHARS}}}")
log = logging.getLogger("videollm")


def parse_sources(given: Iterable[str]) -> dict[str, str]:
    """Sources by name, of "name=source" each; files are opened once to see that they can be. Raises
    SettingsError."""
    sources: dict[str, str] = {}
    for one in given:
        name, equals, uri = one.partition("=")
        if not (equals and uri and _NAME.fullmatch(name)):
            raise SettingsError(
                f"--source {one}: write it as NAME=SOURCE, the name of letters, digits, - and _ "
                f"({MAX_SOURCE_CHARS} at most)"
            )
        if name in sources:
            raise SettingsError(f"--source {name} is given twice; choose another name for one of them")
        if uri == "-":
            raise SettingsError(
                f"--source {name}: standard input can be watched only once; push it with "
                "`videollm narrate - --server`"
            )
        if not _is_device(uri):
            try:
                open_source(uri, READ_FPS).close()
            except SourceError as error:
                raise SettingsError(f"--source {name}: {error}") from error
        sources[name] = uri
    return sources


def _is_device(uri: str) -> bool:
    """Whether this is a camera or an address, which may come and go while the server runs."""
    return uri.startswith("camera:") or "://" in uri


def _is_shared(uri: str) -> bool:
    """Whether there is one such stream for all: a clip begins anew for everyone who watches it."""
    return uri.startswith("camera:") or uri.partition("://")[0].lower() in LIVE_SCHEMES


class Watcher(ABC):
    """One who watches a source; all methods are called on the thread that reads it."""

    @property
    @abstractmethod
    def wanted(self) -> bool:
        """Whether more is wanted."""

    @abstractmethod
    def wait_for_room(self, seconds: float) -> bool:
        """Wait until a frame shown now would not push out another one; False where the time is over first."""

    @abstractmethod
    def show(self, frame: Frame, jpeg: bytes) -> None:
        """The next frame, and its picture file."""

    @abstractmethod
    def end(self, code: NoticeCode, text: str) -> None:
        """Nothing more will come."""


class ServerSources:
    """Of the event loop's thread. Cameras and live addresses are read once for all who watch them, clips for
    each from their beginning."""

    def __init__(self, sources: Mapping[str, str], max_side: int) -> None:
        self._sources = sources
        self._max_side = max_side
        self._readers: dict[tuple[str, object], _Reader] = {}  # by name and, where not shared, for whom

    @property
    def names(self) -> list[str]:
        return list(self._sources)

    def check(self, name: str) -> None:
        """Raises ProtocolError for a name that is not offered."""
        if name not in self._sources:
            raise ProtocolError(ErrorCode.SOURCE_UNKNOWN, "there is no source of that name; see /v1/sources")

    def watch(self, name: str, fps: float, watcher: Watcher, owner: object) -> None:
        """Begin to show a source; an owner has one watcher at a time. `fps` is how many pictures of a folder
        are shown a second; all else is shown at up to `READ_FPS`."""
        uri = self._sources[name]
        key = name, None if _is_shared(uri) else owner
        self._readers = {key: reader for key, reader in self._readers.items() if reader.is_alive()}
        if (running := self._readers.get(key)) is not None and running.admit(watcher, fps):
            return
        reader = self._readers[key] = _Reader(name, uri, self._max_side)
        reader.admit(watcher, fps)
        reader.start()

    def close(self) -> None:
        """Stop reading."""
        for reader in self._readers.values():
            reader.stop()
        until = time.monotonic() + CLOSE_SECONDS
        for reader in self._readers.values():
            reader.join(max(0.0, until - time.monotonic()))


class _Reader(threading.Thread):
    """Reads one source, again and again from its beginning as long as somebody wants to watch. What is shared
    is shown to those who come later, too. What is not live is shown at its own speed, and where it is not
    shared waits for its watcher."""

    def __init__(self, name: str, uri: str, max_side: int) -> None:
        super().__init__(name=f"source {name}", daemon=True)
        self._source_name = name
        self._uri = uri
        self._shared = _is_shared(uri)
        self._max_side = max_side
        self._lock = threading.Lock()
        self._watchers: list[Watcher] = []
        self._fps = READ_FPS
        self._stopped = False
        self._finished = False
        self._begun_for: list[Watcher] = []

    def admit(self, watcher: Watcher, fps: float) -> bool:
        """Show it to this one, too; False where reading has come to its end."""
        with self._lock:
            if not self._finished:
                self._watchers = [*self._wanting(), watcher]
                self._fps = fps
            return not self._finished

    def stop(self) -> None:
        """Show nothing more to anybody."""
        self._stopped = True

    def run(self) -> None:
        while self._begin():
            if (end := self._show_all()) is not None:
                told = self._watching()
                for watcher in told:
                    watcher.end(*end)
                with self._lock:
                    self._watchers = [watcher for watcher in self._watchers if watcher not in told]

    def _begin(self) -> bool:
        """Whether somebody wants to watch; where nobody does, nobody is admitted any more."""
        with self._lock:
            self._begun_for = self._wanting()
            self._finished = not self._begun_for
            return not self._finished

    def _watching(self) -> list[Watcher]:
        """Those to whom the next frame is shown."""
        with self._lock:
            wanting = self._wanting()
        return wanting if self._shared else [watcher for watcher in wanting if watcher in self._begun_for]

    def _wanting(self) -> list[Watcher]:
        return [] if self._stopped else [watcher for watcher in self._watchers if watcher.wanted]

    def _show_all(self) -> tuple[NoticeCode, str] | None:
        """Show the source to its end, and say what that was; None where nobody watches any more."""
        name = self._source_name
        try:
            with self._open() as source:
                for frame in self._in_time(source):
                    jpeg = encode_jpeg(frame.pixels)
                    watchers = self._watching()
                    if not watchers:
                        return None
                    for watcher in watchers:
                        watcher.show(frame, jpeg)
                problem = "" if source.problem is None else f": {source.problem}"
                return NoticeCode.SOURCE_ENDED, f"{name} has ended{problem}"
        except SourceError as error:  # its words may hold a path or an address: not for clients
            log.warning("source %s: %s", name, error)
        except Exception:
            log.exception("source %s can't be read", name)
        return NoticeCode.SOURCE_FAILED, f"{name} gives no pictures"

    def _open(self) -> Source:
        is_folder = not _is_device(self._uri) and Path(self._uri).is_dir()
        return open_source(self._uri, self._fps if is_folder else READ_FPS, max_side=self._max_side)

    def _in_time(self, source: Source) -> Iterator[Frame]:
        """The frames of a source. One that is not live doesn't catch up with time spent waiting for room."""
        start = time.monotonic()
        for frame in source:
            if not source.live:
                while not self._shared and (watchers := self._watching()):
                    if watchers[0].wait_for_room(LOOK_SECONDS):
                        break
                start = max(start, time.monotonic() - frame.time)
                while (early := start + frame.time - time.monotonic()) > 0 and self._watching():
                    time.sleep(min(early, LOOK_SECONDS))
            yield frame


def encode_jpeg(pixels: np.ndarray) -> bytes:
    """uint8 [height, width, 3] as a picture file."""
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, "JPEG", quality=JPEG_QUALITY)
    return target.getvalue()
