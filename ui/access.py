"""Who may connect: the token, and which pages of which origins."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from ui.protocol import ErrorCode, ProtocolError
from ui.responses import fail
from ui.settings import Settings, is_loopback

Endpoint = Callable[[Request], Awaitable[Response]]
_SCHEMES = {"ws": "http", "wss": "https"}


class Access:
    """The rules of one server."""

    def __init__(self, settings: Settings) -> None:
        self._token = settings.token
        self._origins = frozenset(origin.rstrip("/").lower() for origin in settings.origins)

    def check_token(self, authorization: str | None, given: str | None = None) -> None:
        """The header's token, or else the one given in another way. Raises ProtocolError."""
        if self._token is None:
            return
        scheme, _, bearer = (authorization or "").partition(" ")
        shown = bearer.strip() if scheme.lower() == "bearer" else given
        if not shown:
            raise ProtocolError(ErrorCode.AUTH_REQUIRED, "a token is needed: Authorization: Bearer ...")
        if not secrets.compare_digest(shown.encode(), self._token.encode()):
            raise ProtocolError(ErrorCode.AUTH_WRONG, "the token is wrong")

    def allows_origin(self, scope: Scope) -> bool:
        """Whether a request comes from no page, from one of this server, or from one of the allowed origins.

        Without a token, the server's own name must be this machine's: another name that leads here is
        how a page of elsewhere would get in.
        """
        headers = Headers(scope=scope)
        host, origin = headers.get("host", "").lower(), headers.get("origin", "").rstrip("/").lower()
        if self._token is None and not is_loopback(_name(host)):
            return False
        own = f"{_SCHEMES.get(scope['scheme'], scope['scheme'])}://{host}"
        return not origin or origin == own or origin in self._origins


class OriginMiddleware:
    """Answers 403 to what `Access.allows_origin` does not allow."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket") and not self._access.allows_origin(scope):
            if scope["type"] == "websocket":
                await send({"type": "websocket.close"})  # before it is accepted: 403
            else:
                refusal = fail(403, "origin.refused", "pages of this origin are not allowed; see --origin")
                await refusal(scope, receive, send)
            return
        await self._app(scope, receive, send)


def guarded(access: Access, endpoint: Endpoint) -> Endpoint:
    """The endpoint for those who show the token."""

    async def check(request: Request) -> Response:
        try:
            access.check_token(request.headers.get("authorization"))
        except ProtocolError as error:
            refusal = fail(401, error.code, str(error))
            refusal.headers["WWW-Authenticate"] = "Bearer"
            return refusal
        return await endpoint(request)

    return check


def _name(host: str) -> str:
    """A Host header without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
