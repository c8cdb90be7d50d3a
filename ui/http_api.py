"""What is asked over plain HTTP: the server's health, its figures, and what its sessions said."""

from __future__ import annotations

import io
from typing import Literal

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from stream.export import FORMATS, writer_for
from stream.frames import Event
from ui.access import Access, guarded
from ui.live_session import LiveSession
from ui.outbox import Lasting
from ui.protocol import Answer, Figures, Narration, Notice
from ui.responses import answer, fail
from ui.sessions import Sessions

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
        return _no_session() if session is None else answer(self._info(session))

    async def export(self, request: Request) -> Response:
        """What a session has said so far, in one of the export formats."""
        session = self._sessions.get(request.path_params["id"])
        if session is None:
            return _no_session()
        format = request.query_params.get("format", "jsonl")
        if format not in FORMATS:
            return fail(422, "format.unknown", f"choose a format among {', '.join(FORMATS)}", "format")
        target = io.StringIO()
        with writer_for(format, target) as writer:
            for message in session.outbox.kept():
                for event in _events(message):
                    writer.write(event)
        return Response(target.getvalue(), media_type=MEDIA_TYPES[format])

    def _info(self, session: LiveSession) -> SessionInfo:
        state = self._sessions.state(session)
        return SessionInfo(session.id, session.started, state, session.figures())


def _events(message: Lasting) -> list[Event]:
    """A message as the exports know it."""
    match message:
        case Narration():
            return [Event(message.start, "narration", message.text)]
        case Answer():
            return [
                Event(message.start, "question", message.question),
                Event(message.start, "answer", message.text),
            ]
        case Notice():
            return [Event(message.start, "notice", message.text)]
        case _:
            return []


def _no_session() -> Response:
    return fail(404, "session.unknown", "there is no such session, or its time of grace is over", "id")
