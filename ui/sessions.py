"""The sessions of a server: begun, parked while their connection is broken, resumed, cleaned up."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from msgspec.structs import replace

from stream.engine import Engine
from stream.journal import JournalFolder
from ui.engine_thread import EngineThread, Stream
from ui.live_session import LiveSession
from ui.metrics import Metrics
from ui.protocol import EndReason, ErrorCode, ProtocolError, SessionStart
from ui.server_sources import ServerSources
from ui.settings import Settings
from ui.source_session import SourceSession

DECODERS = 2  # threads; pictures are decoded without Python's lock
# What the vision tower sees is averaged from pictures of up to this many times its side.
DETAIL = 2
DRAIN_SECONDS = 10.0
log = logging.getLogger("videollm")


class Sessions:
    """Slots of the engine for up to `max_sessions` streams; of the event loop's thread, like all that is
    awaited here."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.engine = EngineThread(engine, self.metrics)
        self.max_side = DETAIL * engine.model.vision_tower.size
        self.sources = ServerSources(settings.sources, self.max_side)
        self.decoders = ThreadPoolExecutor(DECODERS, thread_name_prefix="decoder")
        self.journals = (
            JournalFolder(settings.journal, settings.journal_size, settings.journal_total)
            if settings.journal is not None
            else None
        )
        self.draining = False
        self._live: dict[str, LiveSession] = {}  # by id; for the time of grace also those that are over
        self._by_token: dict[bytes, LiveSession] = {}
        self._parked: dict[LiveSession, asyncio.TimerHandle] = {}
        self._seated: set[Stream] = set()
        self.metrics.watch("videollm_sessions", "Streams that hold a slot.", lambda: len(self._seated))
        self.metrics.watch(
            "videollm_sessions_parked",
            "Sessions that wait for their client.",
            lambda: sum(not session.over for session in self._parked),
        )

    def all(self) -> list[LiveSession]:
        return list(self._live.values())

    def get(self, id: str) -> LiveSession | None:
        return self._live.get(id)

    def state(self, session: LiveSession) -> Literal["connected", "parked", "ended"]:
        if session.over:
            return "ended"
        return "parked" if session in self._parked else "connected"

    async def open(self, start: SessionStart) -> LiveSession:
        """Begin a session. Raises ProtocolError."""
        if start.threshold is None:
            start = replace(start, threshold=self.settings.threshold)
        shared = start, self.decoders, self.max_side, self.engine.wake, self.metrics, self.journals
        if start.source is None:
            session = LiveSession(*shared)
        else:
            self.sources.check(start.source)
            session = SourceSession(*shared, self.sources, start.source)
        await self.seat(session, start.prompt)
        self._live[session.id] = session
        self._by_token[_digest(session.resume_token)] = session
        if isinstance(session, SourceSession):
            session.watch()
        return session

    async def seat(self, stream: Stream, prompt: str | None = None) -> None:
        """Give a stream a slot. Raises ProtocolError."""
        if self.draining:
            raise ProtocolError(ErrorCode.SERVER_SHUTDOWN, "the server is stopping; try again later")
        self._seated = {seated for seated in self._seated if not seated.over}
        if len(self._seated) >= self.settings.max_sessions:
            most = self.settings.max_sessions
            raise ProtocolError(ErrorCode.SERVER_FULL, f"all {most} sessions are taken; try again later")
        self._seated.add(stream)
        try:
            await asyncio.wrap_future(self.engine.join(stream, prompt))
        except ValueError as error:
            self._seated.discard(stream)
            raise ProtocolError(ErrorCode.PROMPT_TOO_LONG, str(error)) from error
        except asyncio.CancelledError:
            self._seated.discard(stream)
            self.engine.leave(stream)  # whether it has joined by now or not
            raise

    async def unseat(self, stream: Stream) -> None:
        """Take a stream's slot away, whatever it is doing."""
        self._seated.discard(stream)
        await asyncio.shield(asyncio.wrap_future(self.engine.leave(stream)))

    def resume(self, token: str) -> LiveSession:
        """The session of that token, which waits no more. Raises ProtocolError."""
        session = self._by_token.get(_digest(token))
        if session is None:
            reason = "there is no such session, or its time of grace is over; start a new one"
            raise ProtocolError(ErrorCode.SESSION_UNKNOWN, reason)
        if (timer := self._parked.pop(session, None)) is not None:
            timer.cancel()
        return session

    def park(self, session: LiveSession) -> None:
        """Its connection is gone: wait for another, as long as the time of grace."""
        loop = asyncio.get_running_loop()
        self._parked[session] = loop.call_later(self.settings.grace_seconds, self._forget, session)

    def _forget(self, session: LiveSession) -> None:
        del self._parked[session], self._live[session.id], self._by_token[_digest(session.resume_token)]
        if not session.over:
            log.info("session %s: its client has not come back", session.id)
            session.ended.set()  # a source that it watches is read no further
        self.engine.leave(session)
        self._seated.discard(session)

    async def drain(self) -> None:
        """Begin nothing new, deal with what waits, and end all sessions."""
        self.draining = True
        for session in self.all():
            session.end(EndReason.SHUTDOWN)
        until = time.monotonic() + DRAIN_SECONDS
        while time.monotonic() < until and not self._is_drained():
            await asyncio.sleep(0.02)

    def _is_drained(self) -> bool:
        """Whether all has been said, and told to those who were listening."""
        return all(stream.over for stream in self._seated) and len(self._parked) == len(self._live)

    def close(self) -> None:
        """Give the threads back."""
        for timer in self._parked.values():
            timer.cancel()
        self.sources.close()
        self.engine.stop()
        self.decoders.shutdown(cancel_futures=True)


def _digest(token: str) -> bytes:
    """What a token is found by: looking it up takes the same time however much of it is right."""
    return hashlib.sha256(token.encode()).digest()
