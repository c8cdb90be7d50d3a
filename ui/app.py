"""The ASGI application: everything that a server answers to."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import BaseRoute, Mount, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from stream.engine import Engine
from ui import documents
from ui.access import Access, OriginMiddleware
from ui.connection import Connections
from ui.http_api import HttpApi
from ui.openai_api import OpenAIApi
from ui.protocol import PATH
from ui.responses import fail_as_routing_does
from ui.sessions import Sessions
from ui.settings import Settings
from videollm import VideoLLM

STATIC = Path(__file__).parent / "static"


def create_app(
    model: VideoLLM,
    name: str,
    settings: Settings,
    page: ASGIApp | None = None,
    engine: type[Engine] = Engine,
) -> Starlette:
    """An application that serves a model under that name; `page` answers to `/` and what is left.

    `app.state.sessions` has to be drained before the server closes its connections.
    """
    access = Access(settings)
    sessions = Sessions(engine(model, settings.max_sessions), settings)
    connections = Connections(sessions, access, name)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        sessions.close()

    routes: list[BaseRoute] = [
        WebSocketRoute(PATH, connections.serve),
        *HttpApi(sessions, access).routes(),
        *OpenAIApi(sessions, access, name).routes(),
        *documents.routes(name),
        Mount("/static", StaticFiles(directory=STATIC)),
    ]
    if page is not None:
        routes.append(Mount("/", page))
    app = Starlette(
        routes=routes,
        middleware=[Middleware(OriginMiddleware, access=access)],
        exception_handlers={HTTPException: fail_as_routing_does},
        lifespan=lifespan,
    )
    app.state.sessions = sessions
    return app
