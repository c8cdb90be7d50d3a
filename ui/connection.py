"""One WebSocket: from the first message to the close code."""

from __future__ import annotations

import asyncio
import contextlib

import msgspec
from starlette.websockets import WebSocket, WebSocketDisconnect

from ui.access import Access
from ui.inbox import QUESTIONS
from ui.live_session import LiveSession
from ui.protocol import (
    MAX_FRAME_BYTES,
    MAX_MESSAGE_BYTES,
    MAX_PIXELS,
    MAX_QUESTION_CHARS,
    SUBPROTOCOL,
    VERSION,
    CloseCode,
    EndReason,
    ErrorCode,
    Limits,
    ProtocolError,
    Question,
    ServerError,
    ServerMessage,
    SessionEnd,
    SessionEnded,
    SessionReset,
    SessionStart,
    SessionStarted,
    SessionUpdate,
    parse_message,
)
from ui.sessions import Sessions

START_SECONDS = 10.0
MOST_STARTING = 1024  # connections that have shown nothing yet
CLOSE_CODES = {
    ErrorCode.AUTH_REQUIRED: CloseCode.UNAUTHORIZED,
    ErrorCode.AUTH_WRONG: CloseCode.UNAUTHORIZED,
    ErrorCode.START_TIMEOUT: CloseCode.START_TIMEOUT,
    ErrorCode.SERVER_FULL: CloseCode.TRY_LATER,
    ErrorCode.SERVER_SHUTDOWN: CloseCode.TRY_LATER,
    ErrorCode.SERVER_ERROR: CloseCode.INTERNAL,
    ErrorCode.SESSION_UNKNOWN: CloseCode.SESSION_UNKNOWN,
    ErrorCode.SESSION_TAKEN: CloseCode.SESSION_TAKEN,
    ErrorCode.READER_SLOW: CloseCode.READER_SLOW,
    ErrorCode.MESSAGE_TOO_LARGE: CloseCode.MESSAGE_TOO_LARGE,
}
_ENDS = {
    EndReason.CLIENT: CloseCode.NORMAL,
    EndReason.SHUTDOWN: CloseCode.GOING_AWAY,
    EndReason.ERROR: CloseCode.INTERNAL,
}
_encoder = msgspec.json.Encoder()


class Connections:
    """Serves WebSockets; at most one of them a session."""

    def __init__(self, sessions: Sessions, access: Access, model: str) -> None:
        self._sessions = sessions
        self._access = access
        self._model = model
        self._of: dict[LiveSession, _Connection] = {}
        self._starting = 0

    async def serve(self, websocket: WebSocket) -> None:
        """From the handshake to the end of the connection."""
        offered = websocket.scope["subprotocols"]
        try:
            await websocket.accept(SUBPROTOCOL if SUBPROTOCOL in offered else None)
            start = await self._start(websocket)
            if start.resume_token is None:
                session = await self._sessions.open(start)
            else:
                session = self._sessions.resume(start.resume_token)
        except ProtocolError as error:
            self._sessions.metrics.errors.labels(error.code).inc()
            await _refuse(websocket, 0, error)
            return
        except WebSocketDisconnect:
            return
        while (older := self._of.pop(session, None)) is not None:
            await older.hand_over()  # meanwhile another may have come
        connection = self._of[session] = _Connection(websocket, session)
        try:
            last_event_id = 0 if start.resume_token is None else start.last_event_id
            await connection.run(self._greeting(session, start), last_event_id)
        finally:
            if self._of.get(session) is connection:
                del self._of[session]
                session.outbox.detach()
                self._sessions.park(session)

    async def _start(self, websocket: WebSocket) -> SessionStart:
        """The first message. Raises ProtocolError and WebSocketDisconnect."""
        if self._starting >= MOST_STARTING:
            raise ProtocolError(ErrorCode.SERVER_FULL, "too many connections begin at once; try again later")
        self._starting += 1
        try:
            message = await asyncio.wait_for(_receive(websocket), START_SECONDS)
        except TimeoutError:
            reason = f"no session.start within {START_SECONDS:g} s"
            raise ProtocolError(ErrorCode.START_TIMEOUT, reason) from None
        finally:
            self._starting -= 1
        start = parse_message(message) if isinstance(message, str) else None
        if not isinstance(start, SessionStart):
            raise ProtocolError(ErrorCode.START_EXPECTED, "the first message is session.start")
        self._access.check_token(websocket.headers.get("authorization"), start.token)
        if start.version != VERSION:
            reason = f"version {start.version} is not spoken here; version {VERSION} is"
            raise ProtocolError(ErrorCode.VERSION_UNSUPPORTED, reason)
        return start

    def _greeting(self, session: LiveSession, start: SessionStart) -> SessionStarted:
        limits = Limits(
            MAX_FRAME_BYTES,
            MAX_PIXELS,
            MAX_MESSAGE_BYTES,
            MAX_QUESTION_CHARS,
            QUESTIONS,
            self._sessions.settings.grace_seconds,
        )
        return SessionStarted(
            0,
            VERSION,
            session.id,
            session.resume_token,
            self._model,
            session.credits,
            limits,
            start.resume_token is not None,
            session.last_sequence,
        )


class _Connection:
    """A session's WebSocket while it lasts."""

    def __init__(self, websocket: WebSocket, session: LiveSession) -> None:
        self._websocket = websocket
        self._session = session
        self._something = asyncio.Event()  # to send
        self._tasks: list[asyncio.Task[None]] = []

    async def run(self, greeting: SessionStarted, last_event_id: int) -> None:
        """Until either side closes."""
        loop = asyncio.get_running_loop()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has closed
                loop.call_soon_threadsafe(self._something.set)

        lost = self._session.outbox.attach(wake, last_event_id)
        greeting = msgspec.structs.replace(greeting, event_id=last_event_id, lost_events=lost)
        self._something.set()
        self._tasks = [
            asyncio.create_task(self._receive_all()),
            asyncio.create_task(self._send_all(greeting)),
        ]
        try:
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in self._tasks:
                task.cancel()
            outcomes = await asyncio.gather(*self._tasks, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, ProtocolError):
                await _refuse(self._websocket, self._session.outbox.number(), outcome)
            elif isinstance(outcome, Exception) and not isinstance(outcome, WebSocketDisconnect):
                raise outcome

    async def hand_over(self) -> None:
        """Another connection has resumed the session: end this one."""
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        reason = "the session goes on in another connection"
        error = ProtocolError(ErrorCode.SESSION_TAKEN, reason)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(_refuse(self._websocket, self._session.outbox.number(), error), 1.0)

    async def _receive_all(self) -> None:
        session = self._session
        while True:
            message = await _receive(self._websocket)
            await asyncio.sleep(0)  # one that sends without a pause doesn't have the loop for itself
            if isinstance(message, bytes):
                session.receive_frame(message)
                continue
            try:
                parsed = parse_message(message)
            except ProtocolError as error:
                if error.code is ErrorCode.MESSAGE_TOO_LARGE:
                    raise
                session.object(error.code, str(error))
                continue
            match parsed:
                case Question():
                    session.receive_question(parsed)
                case SessionUpdate():
                    session.update(parsed)
                case SessionReset():
                    session.reset()
                case SessionEnd():
                    session.end(EndReason.CLIENT)
                case SessionStart():
                    session.object(ErrorCode.START_REPEATED, "the session has started already")

    async def _send_all(self, greeting: SessionStarted) -> None:
        outbox = self._session.outbox
        await self._send(greeting)
        while True:
            await self._something.wait()
            self._something.clear()
            while (message := outbox.take()) is not None:
                await self._send(message)
                if isinstance(message, SessionEnded):
                    await self._websocket.close(_ENDS[message.reason])
                    return
            if outbox.has_fallen_behind:
                reason = "too many events lie unread; read faster and resume the session"
                raise ProtocolError(ErrorCode.READER_SLOW, reason)

    async def _send(self, message: ServerMessage) -> None:
        await self._websocket.send_text(_encoder.encode(message).decode())


async def _receive(websocket: WebSocket) -> str | bytes:
    """The next message. Raises WebSocketDisconnect."""
    message = await websocket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message["code"])
    received: str | bytes = message["bytes"] if message.get("text") is None else message["text"]
    return received


async def _refuse(websocket: WebSocket, event_id: int, error: ProtocolError) -> None:
    """Say why, and close."""
    message = ServerError(event_id, error.code, str(error), fatal=True)
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):  # the client was faster
        await websocket.send_text(_encoder.encode(message).decode())
        await websocket.close(CLOSE_CODES.get(error.code, CloseCode.REFUSED))
