"""How answers over HTTP are written."""

from __future__ import annotations

import msgspec
from msgspec import Struct
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

_encoder = msgspec.json.Encoder()
_KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error"}


class Failure(Struct, frozen=True):
    """What went wrong, in OpenAI's form."""

    message: str
    type: str
    code: str
    param: str | None = None


class Failed(Struct, frozen=True):
    error: Failure


def answer(body: Struct, status: int = 200) -> Response:
    return Response(_encoder.encode(body), status, media_type="application/json")


def fail(status: int, code: str, message: str, param: str | None = None) -> Response:
    """An error in OpenAI's form, which all of the HTTP API shares."""
    kind = "server_error" if status >= 500 else _KINDS.get(status, "invalid_request_error")
    return answer(Failed(Failure(message, kind, code, param)), status)


async def fail_as_routing_does(request: Request, error: Exception) -> Response:
    """What the framework refuses by itself: an unknown path or method."""
    assert isinstance(error, HTTPException)
    refusal = fail(
        error.status_code, "request.unknown", f"{request.method} {request.url.path}: {error.detail}"
    )
    refusal.headers.update(error.headers or {})
    return refusal
