"""The server's own sources over plain HTTP: their names, and the pictures of sessions that watch them."""

from __future__ import annotations

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from ui.access import Access, guarded
from ui.responses import answer, fail
from ui.sessions import Sessions
from ui.source_session import SourceSession

JPEG = "image/jpeg"
MOST_DIGITS = 10  # of a u32


class SourceInfo(Struct, frozen=True):
    name: str
    """For `source` of `session.start`; its address is told to nobody."""


class SourceList(Struct, frozen=True):
    sources: list[SourceInfo]


class SourceApi:
    """A client that reads slowly asks less often, and misses pictures alone."""

    def __init__(self, sessions: Sessions, access: Access) -> None:
        self._sessions = sessions
        self._access = access

    def routes(self) -> list[BaseRoute]:
        return [
            Route("/v1/sources", guarded(self._access, self.list_sources)),
            Route("/v1/sessions/{id}/picture", guarded(self._access, self.newest)),
            Route("/v1/sessions/{id}/pictures/{sequence}", guarded(self._access, self.moment)),
        ]

    async def list_sources(self, request: Request) -> Response:
        return answer(SourceList([SourceInfo(name) for name in self._sessions.sources.names]))

    async def newest(self, request: Request) -> Response:
        """What the source shows now."""
        session = self._sessions.get(request.path_params["id"])
        if not isinstance(session, SourceSession):
            return fail(
                404, "session.unknown", "there is no such session with a source of the server's", "id"
            )
        picture = session.newest_picture
        return Response(status_code=204) if picture is None else _jpeg(picture)

    async def moment(self, request: Request) -> Response:
        """The frame of a narration or an answer, by its sequence number."""
        session, sequence = self._sessions.get(request.path_params["id"]), request.path_params["sequence"]
        picture = None
        if isinstance(session, SourceSession) and sequence.isdecimal() and len(sequence) <= MOST_DIGITS:
            picture = session.picture(int(sequence))
        if picture is None:
            reason = "there is no such picture; the latest ones of which something was said are kept"
            return fail(404, "picture.unknown", reason, "sequence")
        return _jpeg(picture)


def _jpeg(picture: bytes) -> Response:
    return Response(picture, media_type=JPEG, headers={"Cache-Control": "no-store"})
