"""`POST /v1/chat/completions` and `GET /v1/models`, as OpenAI's clients expect them."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from ui.access import Access, guarded
from ui.chat import Answered, ChatRequest, ChatStream
from ui.media import MediaError
from ui.protocol import ErrorCode, ProtocolError
from ui.responses import fail
from ui.sessions import Sessions

log = logging.getLogger("videollm")
MAX_BODY_BYTES = 64 * 2**20
_decoder = msgspec.json.Decoder(ChatRequest)
_STATUS = {ErrorCode.SERVER_FULL: 503, ErrorCode.SERVER_SHUTDOWN: 503}


class OpenAIApi:
    def __init__(self, sessions: Sessions, access: Access, model: str) -> None:
        self._sessions = sessions
        self._access = access
        self._model = model
        self._started = int(time.time())

    def routes(self) -> list[BaseRoute]:
        return [
            Route("/v1/models", guarded(self._access, self.models)),
            Route("/v1/chat/completions", guarded(self._access, self.complete), methods=["POST"]),
        ]

    async def models(self, request: Request) -> Response:
        model = {"id": self._model, "object": "model", "created": self._started, "owned_by": "videollm"}
        return _json({"object": "list", "data": [model]})

    async def complete(self, request: Request) -> Response:
        """The last question of a conversation about pictures and clips, answered whole or as it is found."""
        try:
            wanted = _decoder.decode(await _body(request))
            if wanted.model != self._model:
                return fail(404, "model_not_found", f"there is no model {wanted.model} here", "model")
            conversation = _Conversation(self._sessions, wanted)
            await self._sessions.seat(conversation.stream, wanted.system())
        except msgspec.DecodeError as error:
            return fail(422, "request.invalid", str(error))
        except MediaError as error:
            return fail(413 if error.code == "request.too_large" else 422, error.code, str(error), "messages")
        except ProtocolError as error:
            return fail(_STATUS.get(error.code, 422), error.code, str(error))
        texts = conversation.texts()
        try:
            first = await anext(texts)  # what is wrong with the pictures comes out by then
        except MediaError as error:
            return fail(422, error.code, str(error), "messages")
        except RuntimeError as error:
            return fail(500, ErrorCode.SERVER_ERROR, str(error))
        head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": self._model}
        if wanted.stream:
            usage = wanted.stream_options is not None and wanted.stream_options.include_usage
            return StreamingResponse(_chunks(head, first, texts, usage), media_type="text/event-stream")
        try:
            *_, last = [first, *[text async for text in texts]]
        except RuntimeError as error:
            return fail(500, ErrorCode.SERVER_ERROR, str(error))
        assert isinstance(last, Answered)
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": last.text, "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
        return _json(head | {"object": "chat.completion", "choices": [choice], "usage": last.usage})


class _Conversation:
    """A request on its way through the engine."""

    def __init__(self, sessions: Sessions, wanted: ChatRequest) -> None:
        self._sessions = sessions
        self._wanted = wanted
        self._heard: asyncio.Queue[str | Answered | Exception] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def hear(what: str | Answered | Exception) -> None:
            with suppress(RuntimeError):  # the loop has closed
                loop.call_soon_threadsafe(self._heard.put_nowait, what)

        wanted.turns()  # raises before a slot is taken
        self.stream = ChatStream(sessions.engine.wake, hear)

    async def texts(self) -> AsyncGenerator[str | Answered]:
        """The answer's text so far, again and again, then the answer. Raises MediaError, RuntimeError."""
        folders = self._sessions.settings.folders
        inputs = self._wanted.inputs(self._sessions.max_side, folders)
        feeding = asyncio.create_task(asyncio.to_thread(self.stream.feed, inputs))
        feeding.add_done_callback(self._tell_failure)
        try:
            while True:
                match await self._heard.get():
                    case Exception() as error:
                        raise error
                    case Answered() as answered:
                        yield answered
                        return
                    case text:
                        yield text
        finally:
            self.stream.give_up()
            await self._sessions.unseat(self.stream)

    def _tell_failure(self, feeding: asyncio.Task[None]) -> None:
        if feeding.cancelled() or (error := feeding.exception()) is None:
            return
        if not isinstance(error, MediaError):
            log.error("a request's pictures or clips can't be read", exc_info=error)
            error = MediaError("media.unreadable", "the pictures or clips can't be read")
        self._heard.put_nowait(error)


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            raise MediaError("request.too_large", f"a request has at most {MAX_BODY_BYTES} bytes")
    return bytes(body)


async def _chunks(
    head: dict[str, Any], first: str | Answered, rest: AsyncGenerator[str | Answered], usage: bool
) -> AsyncIterator[bytes]:
    """Server-sent events; each holds the words that are new."""
    head = head | {"object": "chat.completion.chunk"}

    def chunk(delta: dict[str, str], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return _sse(head | {"choices": [choice]})

    yield chunk({"role": "assistant", "content": ""})
    told, piece = "", first
    async with aclosing(rest):
        while True:
            text = piece.text if isinstance(piece, Answered) else piece
            # Half a letter waits for its other half.
            whole = isinstance(piece, Answered) or not text.endswith("\N{REPLACEMENT CHARACTER}")
            if whole and text.startswith(told) and text != told:
                yield chunk({"content": text[len(told) :]})
                told = text
            if isinstance(piece, Answered):
                break
            try:
                piece = await anext(rest)
            except RuntimeError as error:
                yield _sse({"error": {"message": str(error), "code": ErrorCode.SERVER_ERROR}})
                return
    yield chunk({}, "stop")
    if usage:
        yield _sse(head | {"choices": [], "usage": piece.usage})
    yield b"data: [DONE]\n\n"


def _sse(body: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(body) + b"\n\n"


def _json(body: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")
