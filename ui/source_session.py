"""A session that watches one of the server's own sources."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress

import numpy as np

from stream.frames import Event, Frame
from stream.journal import JournalFolder
from ui.inbox import FRAMES, WaitingFrame
from ui.live_session import LiveSession
from ui.metrics import Metrics
from ui.outbox import UNNUMBERED
from ui.protocol import EndReason, ErrorCode, Notice, NoticeCode, SessionStart
from ui.server_sources import ServerSources, Watcher

KEPT_PICTURES = 256  # of moments, the latest: at most some 10 MB a session


class SourceSession(LiveSession):
    """Its frames come from the source that `session.start` names, as if a client had sent them; clients only
    ask, and hear. `session.reset` begins the source anew, where that has a beginning."""

    credits = 0

    def __init__(
        self,
        start: SessionStart,
        pool: Executor,
        max_side: int,
        wake_engine: Callable[[], None],
        metrics: Metrics,
        journals: JournalFolder | None,
        sources: ServerSources,
        source: str,
    ) -> None:
        super().__init__(start, pool, max_side, wake_engine, metrics, journals)
        self.newest_picture: bytes | None = None
        """What the source showed last, a JPEG file."""
        self._sources = sources
        self._source = source
        self._watch: _Watch | None = None
        self._shown = 0  # frames that are not done with yet
        self._fewer_shown = threading.Condition()
        self._moments_lock = threading.Lock()
        self._moments: OrderedDict[int, bytes | None] = OrderedDict()  # JPEG by sequence
        self._read_picture: bytes | None = None  # of the engine's thread

    def watch(self) -> None:
        """Begin to watch."""
        self._watch = _Watch(self)
        self._sources.watch(self._source, self._fps, self._watch, owner=self)

    def picture(self, sequence: int) -> bytes | None:
        """The JPEG of a frame of which something was said, or after which an answer was given."""
        with self._moments_lock:
            return self._moments.get(sequence)

    # What a client does

    def receive_frame(self, message: bytes) -> None:
        self.object(
            ErrorCode.FRAME_UNEXPECTED, f"this session watches {self._source}; push frames in another"
        )

    def reset(self) -> None:
        if self._end_reason is not None:
            return
        self._stop_watching()
        super().reset()
        self.watch()

    def end(self, reason: EndReason) -> None:
        self._stop_watching()
        super().end(reason)

    def _stop_watching(self) -> None:
        if self._watch is not None:
            self._watch.stop()
            self._watch = None

    # What its source does, on the event loop's thread

    def take_frame(self, watch: _Watch, frame: Frame, jpeg: bytes) -> None:
        """The next frame, unless another watch has begun meanwhile."""
        if watch is not self._watch:
            self.count_shown(-1)
            return
        self._received += 1
        sequence = 0 if self.last_sequence is None else self.last_sequence + 1
        stream_time = self._place(sequence, frame.time)
        self.newest_picture = jpeg
        pixels: Future[np.ndarray] = Future()
        pixels.set_result(frame.pixels)
        entry = WaitingFrame(sequence, stream_time, pixels, jpeg)
        self._take(sequence, stream_time, lambda: self._inbox.put(entry))

    def take_end(self, watch: _Watch, code: NoticeCode, text: str) -> None:
        """Nothing more comes; told once what came before has been read."""
        if watch is self._watch:
            self._inbox.put_command(Notice(UNNUMBERED, code, self._newest_time, text))

    # What the source's thread does

    def wait_for_room(self, seconds: float) -> bool:
        """Wait until the inbox has a place for one more frame; False where it has none by then."""
        with self._fewer_shown:
            return self._fewer_shown.wait_for(lambda: self._shown < FRAMES, seconds)

    def count_shown(self, more: int) -> None:
        """So many more are on their way, or fewer."""
        with self._fewer_shown:
            self._shown += more
            self._fewer_shown.notify_all()

    # What the engine's thread does

    def said(self, events: list[Event]) -> None:
        # Pictures first: whoever hears of a moment may ask for its picture at once.
        for event in events:
            if event.kind == "narration":
                frame = self._frame_at(event.time)
                self._keep(frame.sequence, frame.jpeg)
            elif event.kind == "answer" and self._read_sequence is not None:
                self._keep(self._read_sequence, self._read_picture)
        super().said(events)

    def _read(self, frames: list[WaitingFrame]) -> None:
        self._read_picture = frames[-1].jpeg
        super()._read(frames)

    def _keep(self, sequence: int, jpeg: bytes | None) -> None:
        with self._moments_lock:
            self._moments[sequence] = jpeg
            if len(self._moments) > KEPT_PICTURES:
                self._moments.popitem(last=False)

    # All

    def _done(self, sequences: list[int], outcome: str) -> None:
        super()._done(sequences, outcome)
        self.count_shown(-len(sequences))


class _Watch(Watcher):
    """From one beginning of the source to the next: takes what the source's thread shows over to the event
    loop's."""

    def __init__(self, session: SourceSession) -> None:
        self._session = session
        self._loop = asyncio.get_running_loop()
        self._stopped = False

    def stop(self) -> None:
        self._stopped = True

    @property
    def wanted(self) -> bool:
        return not self._stopped and not self._session.over

    def wait_for_room(self, seconds: float) -> bool:
        return self._session.wait_for_room(seconds)

    def show(self, frame: Frame, jpeg: bytes) -> None:
        self._session.count_shown(1)
        with suppress(RuntimeError):  # the loop has closed
            self._loop.call_soon_threadsafe(self._session.take_frame, self, frame, jpeg)

    def end(self, code: NoticeCode, text: str) -> None:
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._session.take_end, self, code, text)
