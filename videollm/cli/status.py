"""The live line under what is said: how fast, how much memory, what was dropped."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Self

import psutil
from rich.console import Console
from rich.live import Live
from rich.text import Text

from stream.frames import Frame

if TYPE_CHECKING:
    from stream.feed import Feed


def on_terminal() -> bool:
    """Whether somebody watches: both what is said and the line go to a terminal."""
    return sys.stdout.isatty() and sys.stderr.isatty()


class Status:
    """Counts frames and, on a terminal, shows the line while the context is open.

    Meanwhile `sys.stdout` prints above the line, so take it inside the context.
    """

    def __init__(self, feed: Feed) -> None:
        self.frames = 0
        self.last: Frame | None = None
        self._feed = feed
        self._process = psutil.Process()
        self._began = time.perf_counter()
        self._live = Live(
            self,
            console=Console(stderr=True),
            transient=True,
            refresh_per_second=4,
            auto_refresh=True,
        )

    def seen(self, frame: Frame) -> None:
        self.frames += 1
        self.last = frame

    @property
    def time(self) -> float:
        """The time of the last frame, in seconds."""
        return self.last.time if self.last else 0.0

    def __enter__(self) -> Self:
        self._began = time.perf_counter()
        if on_terminal():
            self._live.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def __str__(self) -> str:
        elapsed = max(time.perf_counter() - self._began, 1e-9)
        megabytes = self._process.memory_info().rss / 2**20
        return (
            f"{self.frames / elapsed:.1f} frames/s · {self.time / elapsed:.1f}x real time · "
            f"{megabytes:.0f} MiB · {self._feed.dropped} dropped"
        )

    def __rich__(self) -> Text:
        return Text(str(self), style="dim", no_wrap=True, overflow="ellipsis")
