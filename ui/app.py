"""The ASGI application: everything that a server answers to."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import BaseRoute, WebSocketRoute

from stream.engine import Engine
from ui import documents
from ui.access import Access, OriginMiddleware
from ui.connection import Connections
from ui.http_api import HttpApi
from ui.openai_api import OpenAIApi
from ui.page import page_routes
from ui.protocol import PATH
from ui.responses import fail_as_routing_does
from ui.sessions import Sessions
from ui.settings import Settings
from ui.source_api import SourceApi


def create_app(engine: Engine, name: str, settings: Settings) -> Starlette:
    """An application that serves an engine's model under that name, to as many sessions as it has slots.

    `app.state.sessions` has to be drained before the server closes its connections.
    """
    access = Access(settings)
    sessions = Sessions(engine, settings)
    connections = Connections(sessions, access, name)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        sessions.close()

    routes: list[BaseRoute] = [
        WebSocketRoute(PATH, connections.serve),
        *HttpApi(sessions, access).routes(),
        *SourceApi(sessions, access).routes(),
        *OpenAIApi(sessions, access, name).routes(),
        *documents.routes(name),
        *page_routes(),
    ]
    app = Starlette(
        routes=routes,
        middleware=[Middleware(OriginMiddleware, access=access)],
        exception_handlers={HTTPException: fail_as_routing_does},
        lifespan=lifespan,
    )
    app.state.sessions = sessions
    return app
