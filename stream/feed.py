"""Reads a source ahead of whoever consumes it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from stream.frames import Event, Frame
from stream.sources import Source

JOIN_SECONDS = 0.5
NOTICE_SECONDS = 5.0


class Feed:
    """Decoding runs ahead in a thread, in a queue of at most `depth` frames.

    When the queue is full, a live source loses its oldest frame and a notice says so; any other source
    waits. `realtime` paces a source that is not live: no frame is given out before its own time. The
    feed takes the source over and closes it.
    """

    dropped: int
    """Frames lost so far because the consumer was too slow."""

    def __init__(self, source: Source, *, depth: int = 8, realtime: bool = False) -> None:
        self.dropped = 0
        self._source = source
        self._depth = depth
        self._paced = realtime and not source.live
        self._queue: deque[Frame] = deque()
        self._changed = threading.Condition()
        self._ended = False
        self._closed = False
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._read, name="feed", daemon=True)

    def __iter__(self) -> Iterator[Frame | Event]:
        """Frames, and notices between them. Raises what the source raised, after the frames before it."""
        self._thread.start()
        start = time.monotonic()
        now, announced, next_notice = 0.0, 0, 0.0
        while (frame := self._take()) is not None:
            now = frame.time
            if self._paced and not self._wait_until(start + now):
                return
            if self.dropped > announced and now >= next_notice:
                yield _dropped_notice(now, self.dropped - announced)
                announced, next_notice = self.dropped, now + NOTICE_SECONDS
            yield frame
        if self._closed:
            return
        if self.dropped > announced:
            yield _dropped_notice(now, self.dropped - announced)
        if self._error is not None:
            raise self._error
        if self._source.problem is not None:
            yield Event(now, "notice", self._source.problem)

    def more(self) -> bool:
        """Whether the next frame is there, or on its way from a source that needs no waiting for: then it can
        be read together with the one before."""
        with self._changed:
            if not self._source.live and not self._paced:
                self._changed.wait_for(lambda: self._queue or self._ended or self._closed)
            return bool(self._queue) and not self._paced and not self._closed

    def close(self) -> None:
        """Stop reading and close the source; returns within about 2 s even when a camera read hangs."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._source.close()
        if self._thread.is_alive():
            self._thread.join(JOIN_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _read(self) -> None:
        try:
            for frame in self._source:
                if not self._put(frame):
                    break
        except Exception as error:
            self._error = error
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _put(self, frame: Frame) -> bool:
        """Queue a frame; False once closed."""
        with self._changed:
            if self._source.live:
                while len(self._queue) >= self._depth:
                    self._queue.popleft()
                    self.dropped += 1
            else:
                self._changed.wait_for(lambda: self._closed or len(self._queue) < self._depth)
            self._queue.append(frame)
            self._changed.notify_all()
            return not self._closed

    def _take(self) -> Frame | None:
        """The oldest frame, as soon as there is one; None at the end or once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._ended or self._closed)
            if self._closed or not self._queue:
                return None
            frame = self._queue.popleft()
            self._changed.notify_all()
            return frame

    def _wait_until(self, moment: float) -> bool:
        """Sleep until `moment` of the monotonic clock; False when closed meanwhile."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed, timeout=moment - time.monotonic())
            return not self._closed


def _dropped_notice(now: float, count: int) -> Event:
    frames = "1 frame" if count == 1 else f"{count} frames"
    return Event(now, "notice", f"{frames} dropped: the model is slower than the stream")
