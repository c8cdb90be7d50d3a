"""A client of the live protocol in one file that can be copied; it needs `websockets`.

    async with connect("ws://127.0.0.1:7860", token="...") as stream:
        await stream.send(jpeg)
        print(await stream.ask("What is in view?"))
        async for event in stream:
            print(event["type"], event.get("text"))

It reconnects by itself and goes on where it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import websockets
from websockets.asyncio.client import ClientConnection

PATH = "/v1/stream"
KEPT_EVENTS = 1000
CONNECT_SECONDS = 10.0
END_SECONDS = 60.0
DELAYS = (0.1, 5.0)  # seconds between attempts to connect, first and longest
RETRIED = frozenset({"reader.slow", "server.full", "server.shutdown", "server.error", "start.timeout"})

Event = dict[str, Any]
"""A message of the server, as `ui/PROTOCOL.md` lists them."""


class RefusedError(Exception):
    """The server will not have this client; `code` is one of the protocol's."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@asynccontextmanager
async def connect(
    server: str, *, token: str | None = None, patience: float = 60.0, **settings: Any
) -> AsyncIterator[Stream]:
    """A session on `server`, ws://host:port or wss://host:port; `settings` are those of `session.start`.

    After a break it tries for `patience` seconds to go on; leaving the context ends the session. Raises
    RefusedError, and OSError where there is no server.
    """
    stream = Stream(server.rstrip("/") + PATH, token, patience, settings)
    task = asyncio.create_task(stream.keep_connected())
    try:
        await stream.until_started()
        yield stream
    finally:
        await stream.say_end()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


class Stream:
    """A session: frames and questions out, events in. Iterate to hear the events; of those that nobody hears
    the latest `KEPT_EVENTS` are kept."""

    def __init__(self, uri: str, token: str | None, patience: float, settings: dict[str, Any]) -> None:
        self.session_id: str | None = None
        self.credits = 0
        """How many frames the server has room for."""
        self.limits: dict[str, Any] = {}
        self.figures: dict[str, Any] | None = None
        """Once the session has ended."""
        self._uri = uri
        self._token = token
        self._patience = patience
        self._settings = settings
        self._resume_token: str | None = None
        self._last_event_id = 0
        self._sequence = -1
        self._questions: dict[str, tuple[str, asyncio.Future[str]]] = {}
        self._asked = 0
        self._ending = False
        self._events: deque[Event] = deque(maxlen=KEPT_EVENTS)
        self._updated: dict[str, Any] = {}  # all that was changed since the start
        self._reset_behind: int | None = None  # the frame before a reset that may not have arrived
        self._socket: ClientConnection | None = None
        self._error: Exception | None = None
        self._changed = asyncio.Condition()

    async def send(self, picture: bytes, time: float | None = None) -> int:
        """Send a JPEG, PNG or WebP file as soon as the server has room for it; the frame's sequence number.
        `time` is its capture time in seconds, on a clock that never runs backward; now where None."""
        await self._until(lambda: self.credits > 0)
        return await self._send_frame(picture, time)

    async def offer(self, picture: bytes, time: float | None = None) -> int | None:
        """Send a picture if the server has room for it now; None where it has not. For live pictures: a later
        one is worth more."""
        self._check()
        return await self._send_frame(picture, time) if self.credits > 0 else None

    async def ask(self, question: str) -> str:
        """Ask about all that was sent, and wait for the answer. Raises RefusedError."""
        self._check()
        self._asked += 1
        id = f"q{self._asked}"
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._questions[id] = question, answer
        await self._say({"type": "question", "id": id, "text": question})
        try:
            return await answer
        finally:
            self._questions.pop(id, None)

    async def update(self, **settings: Any) -> None:
        """Change `fps`, `threshold` or `events`, now or once there is a connection again."""
        self._check()
        self._settings |= settings
        self._updated |= settings
        await self._say({"type": "session.update"} | settings)

    async def reset(self) -> None:
        """Forget the stream; the next frame begins a new one. Questions that wait are refused."""
        self._check()
        self._reset_behind = self._sequence
        refusal = RefusedError("session.reset", "the stream was reset before the answer came")
        for id in list(self._questions):
            self._settle(id, lambda answer: answer.set_exception(refusal))
        await self._say({"type": "session.reset"})

    async def end(self) -> dict[str, Any]:
        """No frame and no question will follow; the session's figures, once all is said."""
        await self.say_end()
        async with asyncio.timeout(END_SECONDS):
            await self._until(lambda: self.figures is not None)
        return self.figures or {}

    async def say_end(self) -> None:
        """End the session without waiting for what is still to be said."""
        if not self._ending:
            self._ending = True
            await self._say({"type": "session.end"})

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Events as they come, to the end of the session. Raises RefusedError and OSError."""
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self._events or self._error or self.figures)
            if not self._events:
                self._check()
                return
            yield self._events.popleft()

    async def until_started(self) -> None:
        await self._until(lambda: self.session_id is not None)

    async def keep_connected(self) -> None:
        """Connect, and again after a break, until the session has ended or there is no hope."""
        broken_since: float | None = None
        delay = DELAYS[0]
        while self._error is None and self.figures is None:
            began = self._last_event_id, self.session_id
            try:
                await self._connect()
            except RefusedError as error:
                if error.code == "session.unknown" and self._resume_token is not None:
                    self._begin_anew()
                elif self.session_id is None or error.code not in RETRIED:
                    await self._fail(error)
            except (OSError, websockets.WebSocketException) as error:
                if self.session_id is None:
                    await self._fail(error if isinstance(error, OSError) else OSError(str(error)))
            if (self._last_event_id, self.session_id) != began:
                broken_since, delay = None, DELAYS[0]
            if broken_since is None:
                broken_since = time.monotonic()
            elif time.monotonic() - broken_since > self._patience:
                await self._fail(OSError(f"{self._uri} has been away for {self._patience:g} s"))
            if self._error is None and self.figures is None:
                await asyncio.sleep(delay)
                delay = min(2 * delay, DELAYS[1])

    async def _connect(self) -> None:
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        try:
            async with websockets.connect(
                self._uri,
                additional_headers=headers,
                subprotocols=[websockets.Subprotocol("videollm.v1")],
                compression=None,
                open_timeout=CONNECT_SECONDS,
            ) as self._socket:
                await self._start(self._socket)
                async for message in self._socket:
                    await self._hear(json.loads(message))
        finally:
            self._socket = None
            self.credits = 0

    async def _start(self, socket: ClientConnection) -> None:
        start = {"type": "session.start"} | self._settings
        if self._resume_token is not None:
            start |= {"resume_token": self._resume_token, "last_event_id": self._last_event_id}
        await socket.send(json.dumps(start))

    async def _hear(self, event: Event) -> None:
        if event["type"] == "error" and event.get("fatal"):
            raise RefusedError(event["code"], event["message"])
        self._last_event_id = max(self._last_event_id, event["event_id"])
        match event["type"]:
            case "session.started":
                self._resume_token, self.limits = event["resume_token"], event["limits"]
                self.session_id = event["session_id"]
                await self._say_again(event)
                self.credits = event["credits"]  # now frames may follow
            case "frame.ack":
                self.credits += event["credits"]
            case "answer" if event["id"] in self._questions:
                self._settle(event["id"], lambda answer: answer.set_result(event["text"]))
            case "error" if event.get("id") in self._questions:
                refusal = RefusedError(event["code"], event["message"])
                self._settle(event["id"], lambda answer: answer.set_exception(refusal))
            case "session.ended" if event["reason"] == "server.shutdown" and not self._ending:
                self._begin_anew()
            case "session.ended":
                self.figures = event["figures"]
        async with self._changed:
            self._events.append(event)
            self._changed.notify_all()

    async def _say_again(self, started: Event) -> None:
        """What was said without a connection, or may have been lost on the way."""
        if self._updated:
            await self._say({"type": "session.update"} | self._updated)
        if self._reset_behind is not None:
            # A later frame that has arrived came behind the reset.
            if not started.get("resumed") or started.get("last_sequence", -1) > self._reset_behind:
                self._reset_behind = None
            else:
                await self._say({"type": "session.reset"})
        for id, (question, _) in list(self._questions.items()):
            await self._say({"type": "question", "id": id, "text": question})
        if self._ending:
            await self._say({"type": "session.end"})

    def _begin_anew(self) -> None:
        self._resume_token, self._last_event_id = None, 0

    def _settle(self, id: str, how: Callable[[asyncio.Future[str]], None]) -> None:
        _, answer = self._questions.pop(id)
        if not answer.done():
            how(answer)

    async def _fail(self, error: Exception) -> None:
        async with self._changed:
            self._error = error
            self._changed.notify_all()
        for _, answer in self._questions.values():
            if not answer.done():
                answer.set_exception(error)

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    async def _until(self, condition: Callable[[], bool]) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: condition() or self._error is not None)
        self._check()

    async def _send_frame(self, picture: bytes, moment: float | None) -> int:
        self.credits -= 1
        self._sequence += 1
        header = struct.pack(
            ">2sBBId",
            b"VF",
            _format(picture),
            0,
            self._sequence,
            time.monotonic() if moment is None else moment,
        )
        await self._transmit(header + picture)
        return self._sequence

    async def _say(self, message: dict[str, Any]) -> None:
        await self._transmit(json.dumps(message))

    async def _transmit(self, message: str | bytes) -> None:
        """Lost where the connection is broken: what matters is said again."""
        if self._socket is not None:
            with contextlib.suppress(websockets.ConnectionClosed):
                await self._socket.send(message)


def _format(picture: bytes) -> int:
    """The number of a picture file's format. Raises ValueError."""
    if picture[:2] == b"\xff\xd8":
        return 1
    if picture[:4] == b"\x89PNG":
        return 2
    if picture[:4] == b"RIFF" and picture[8:12] == b"WEBP":
        return 3
    raise ValueError("a frame is a JPEG, PNG or WebP file")
