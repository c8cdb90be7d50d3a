"""The one thread that owns the engine and steps it while any stream has work."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from stream.engine import Engine, Script
from stream.frames import Event
from stream.session import Session
from ui.metrics import Metrics
from ui.protocol import CacheFigures

MOST_TOGETHER = 4
T = TypeVar("T")
log = logging.getLogger("videollm")


class Stream(ABC):
    """One that uses a slot of the engine; all methods are called on the engine's thread."""

    @property
    @abstractmethod
    def ready(self) -> bool:
        """Whether `next_script` would give something to do."""

    @abstractmethod
    def next_script(self, session: Session, most_frames: int) -> Script | None:
        """What to do next; reads at most so many frames together."""

    @abstractmethod
    def said(self, events: list[Event]) -> None:
        """What was said by the end of the latest script."""

    @abstractmethod
    def failed(self) -> None:
        """The latest script could not be brought to its end; the stream is over."""

    @property
    @abstractmethod
    def over(self) -> bool:
        """Whether it wants nothing more."""


class EngineThread:
    """Gives every stream that is ready a share of each step: one script at a time, and fewer frames together
    the more streams there are."""

    def __init__(self, engine: Engine, metrics: Metrics) -> None:
        self.engine = engine
        self._metrics = metrics
        self._seats: dict[Stream, Session] = {}
        self._running: dict[int, Stream] = {}  # by slot
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def stop(self) -> None:
        """End after the current step."""
        self._stopping = True
        self._wake.set()
        self._thread.join()

    def wake(self) -> None:
        """A stream has become ready. From any thread."""
        self._wake.set()

    def join(self, stream: Stream, prompt: str | None) -> Future[None]:
        """Give a stream a slot. The future raises RuntimeError where all are taken, ValueError for a prompt
        that is too long."""
        return self._call(lambda: self._join(stream, prompt))

    def leave(self, stream: Stream) -> Future[None]:
        """Take a stream's slot away, whatever it is doing."""
        return self._call(lambda: self._leave(stream))

    def cache_figures(self, stream: Stream) -> Future[CacheFigures | None]:
        """What the cache holds of a stream; None once it has no slot."""
        return self._call(lambda: self._cache_figures(stream))

    def _call(self, action: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        self._calls.append((action, future))
        self._wake.set()
        return future

    def _join(self, stream: Stream, prompt: str | None) -> None:
        self._seats[stream] = Session(self.engine.model, system_prompt=prompt, engine=self.engine)

    def _leave(self, stream: Stream) -> None:
        if (session := self._seats.pop(stream, None)) is not None:
            self._running.pop(session.slot, None)
            self.engine.leave(session.slot)
            if session.journal is not None:
                session.journal.close()

    def _cache_figures(self, stream: Stream) -> CacheFigures | None:
        if (session := self._seats.get(stream)) is None:
            return None
        kept = self.engine.cache.lengths[:, session.slot].tolist()  # [layers]
        return CacheFigures(session.seen_tokens, self.engine.context, session.cache_bytes, kept)

    def _run(self) -> None:
        while not self._stopping:
            self._wake.clear()
            while self._calls:
                action, future = self._calls.popleft()
                if not future.set_running_or_notify_cancel():
                    continue
                try:
                    future.set_result(action())
                except Exception as error:
                    future.set_exception(error)
            if not self._step():
                self._wake.wait()
        for stream in list(self._seats):
            self._leave(stream)

    def _step(self) -> bool:
        """Let all that are ready go on; False where none is."""
        busy = sum(stream.ready for stream in self._seats)
        for stream, session in list(self._seats.items()):
            if session.slot in self._running or not stream.ready:
                continue
            try:
                script = stream.next_script(session, max(1, MOST_TOGETHER // busy))
            except Exception:
                log.exception("a stream could not go on, and is ended")
                stream.failed()
                script = None
            if script is not None:
                self.engine.submit(session.slot, script)
                self._running[session.slot] = stream
            if stream.over:
                self._leave(stream)
        if not self._running:
            return False
        try:
            with self._metrics.steps.time():
                done = self.engine.step()
        except Exception:
            log.exception("a step of the engine failed; the streams in it are ended")
            for stream in list(self._running.values()):
                stream.failed()
                self._leave(stream)
            return True
        for slot, events in done.items():
            stream = self._running.pop(slot)
            stream.said(events)
            if stream.over:
                self._leave(stream)
        return True
