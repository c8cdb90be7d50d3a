"""The page: static files, and the headers that keep it to itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

STATIC = Path(__file__).parent / "static"
POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' blob:",
    "media-src": "'self' blob: mediastream:",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
    # What was said can't become HTML, not even by mistake: no sink takes a string.
    "require-trusted-types-for": "'script'",
    "trusted-types": "'none'",
}
HEADERS = {
    "Content-Security-Policy": "; ".join(f"{directive} {value}" for directive, value in POLICY.items()),
    "Permissions-Policy": "camera=(self), microphone=(self)",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


class _Files(StaticFiles):
    """Files that a browser asks for anew when the server was upgraded."""

    def file_response(self, *arguments: Any, **options: Any) -> Response:
        response = super().file_response(*arguments, **options)
        response.headers.update({name: HEADERS[name] for name in ("Cache-Control", "X-Content-Type-Options")})
        return response


def page_routes() -> list[BaseRoute]:
    """`/`, and what it is made of; open to all, because the page itself asks for the token."""
    return [Route("/", _index), Mount("/static", _Files(directory=STATIC))]


async def _index(request: Request) -> Response:
    return FileResponse(STATIC / "index.html", headers=HEADERS)
