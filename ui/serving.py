"""Runs the application: sockets, TLS, patience with slow readers, and an end that loses nothing."""

from __future__ import annotations

import asyncio
import socket

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from ui.protocol import MAX_FRAME_BYTES
from ui.settings import Settings

PATIENCE_SECONDS = 10.0
PING_SECONDS = 20.0
GRACEFUL_SECONDS = 5


class PatientProtocol(WebSocketsSansIOProtocol):
    """A client that takes nothing for `PATIENCE_SECONDS` while much waits for it is cut off: a socket that
    is full can't be closed in any other way."""

    _patience: asyncio.TimerHandle | None = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._patience = self.loop.call_later(PATIENCE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        self._end_patience()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_patience()
        super().connection_lost(exc)

    def _end_patience(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None


class Server(uvicorn.Server):
    """Uvicorn, which on SIGTERM or SIGINT first drains the sessions of the application."""

    def __init__(self, app: Starlette, settings: Settings) -> None:
        self._app = app
        config = uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            ws=PatientProtocol,
            ws_max_size=MAX_FRAME_BYTES,
            ws_ping_interval=PING_SECONDS,
            ws_ping_timeout=PING_SECONDS,
            ws_per_message_deflate=False,  # pictures are compressed already
            ssl_certfile=settings.certificate,
            ssl_keyfile=settings.key,
            timeout_graceful_shutdown=GRACEFUL_SECONDS,
            log_level="warning",
            server_header=False,
        )
        super().__init__(config)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        await self._app.state.sessions.drain()
        await super().shutdown(sockets)
