"""What is asked over plain HTTP: the server's health, its figures, and what its sessions said."""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import Iterable
from typing import Literal

from msgspec import Struct, structs
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from stream.export import FORMATS, writer_for
from stream.frames import Event
from stream.journal import JournalError
from ui.access import Access, guarded
from ui.live_session import LiveSession
from ui.outbox import Lasting
from ui.protocol import Answer, CacheFigures, Figures, Narration, Notice
from ui.responses import answer, fail
from ui.sessions import Sessions

log = logging.getLogger("videollm")
MEDIA_TYPES = {
    "text": "text/plain",
    "jsonl": "application/jsonl",
    "srt": "application/x-subrip",
    "vtt": "text/vtt",
    "md": "text/markdown",
}


class SessionInfo(Struct, frozen=True):
    id: str
    started: float
    """Seconds since 1970."""
    state: Literal["connected", "parked", "ended"]
    figures: Figures


class SessionDetails(SessionInfo, frozen=True, omit_defaults=True):
    cache: CacheFigures | None = None
    """Absent once the session has ended."""


class SessionList(Struct, frozen=True):
    max_sessions: int
    sessions: list[SessionInfo]


class Status(Struct, frozen=True):
    status: Literal["ok", "draining", "failed"]


class HttpApi:
    """All that is not OpenAI's API; `/openapi.json` describes both."""

    def __init__(self, sessions: Sessions, access: Access) -> None:
        self._sessions = sessions
        self._access = access

    def routes(self) -> list[BaseRoute]:
        return [
            Route("/health", self.health),
            Route("/ready", self.ready),
            Route("/metrics", guarded(self._access, self.metrics)),
            Route("/v1/sessions", guarded(self._access, self.list_sessions)),
            Route("/v1/sessions/{id}", guarded(self._access, self.show_session)),
            Route("/v1/sessions/{id}/events", guarded(self._access, self.export)),
        ]

    async def health(self, request: Request) -> Response:
        """Whether the engine's thread runs."""
        alive = self._sessions.engine.alive
        return answer(Status("ok" if alive else "failed"), 200 if alive else 503)

    async def ready(self, request: Request) -> Response:
        """Whether new sessions can be begun."""
        if self._sessions.draining:
            return answer(Status("draining"), 503)
        return await self.health(request)

    async def metrics(self, request: Request) -> Response:
        return Response(self._sessions.metrics.text(), media_type="text/plain; version=0.0.4")

    async def list_sessions(self, request: Request) -> Response:
        found = [self._info(session) for session in self._sessions.all()]
        return answer(SessionList(self._sessions.settings.max_sessions, found))

    async def show_session(self, request: Request) -> Response:
        session = self._sessions.get(request.path_params["id"])
        if session is None:
            return _no_session()
        cache = await asyncio.wrap_future(self._sessions.engine.cache_figures(session))
        return answer(SessionDetails(**structs.asdict(self._info(session)), cache=cache))

    async def export(self, request: Request) -> Response:
        """What a session has said so far, in one of the export formats; of one that is gone, from its
        journal."""
        id = request.path_params["id"]
        session = self._sessions.get(id)
        try:
            events = await self._said(id) if session is None else _events(session.outbox.kept())
        except JournalError:
            log.exception("the journal of session %s", id)
            return fail(500, "journal.unreadable", "this session's journal can't be read")
        if session is None and not events:
            return _no_session()
        format = request.query_params.get("format", "jsonl")
        if format not in FORMATS:
            return fail(422, "format.unknown", f"choose a format among {', '.join(FORMATS)}", "format")
        target = io.StringIO()
        with writer_for(format, target) as writer:
            for event in events:
                writer.write(event)
        return Response(target.getvalue(), media_type=MEDIA_TYPES[format])

    async def _said(self, id: str) -> list[Event]:
        journals = self._sessions.journals
        return [] if journals is None else await asyncio.to_thread(journals.events, id)

    def _info(self, session: LiveSession) -> SessionInfo:
        state = self._sessions.state(session)
        return SessionInfo(session.id, session.started, state, session.figures())


def _events(messages: Iterable[Lasting]) -> list[Event]:
    """Messages as the exports know them."""
    events: list[Event] = []
    for message in messages:
        match message:
            case Narration():
                events.append(Event(message.start, "narration", message.text))
            case Answer():
                events.append(Event(message.start, "question", message.question))
                events.append(Event(message.start, "answer", message.text, message.moments))
            case Notice():
                events.append(Event(message.start, "notice", message.text))
    return events


def _no_session() -> Response:
    return fail(404, "session.unknown", "there is no such session, or its time of grace is over", "id")
