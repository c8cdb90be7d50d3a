"""Real servers on free ports, and clients that speak the protocol by hand."""

from __future__ import annotations

import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image
from starlette.applications import Starlette
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect as connect_socket

from stream.engine import Engine
from ui.app import create_app
from ui.protocol import EncodedFrame, FrameFormat
from ui.serving import Server
from ui.settings import Settings
from videollm import VideoLLM

Message = dict[str, Any]
SPEAKS = {"threshold": 1.0, "fps": 60}  # of `session.start`: at every frame
SILENT = {"threshold": 0.0, "fps": 60}


@contextmanager
def running(model: VideoLLM, **settings: Any) -> Iterator[Running]:
    """A server in a thread, until the context is left."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        chosen = replace(Settings(port=taken.getsockname()[1]), **settings)
        app = create_app(Engine(model, chosen.max_sessions), "tiny", chosen)
        server = Server(app, chosen)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]})
        thread.start()
        try:
            until(lambda: server.started)
            yield Running(app, server, chosen)
            assert app.state.sessions.engine.alive
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


class Running:
    def __init__(self, app: Starlette, server: Server, settings: Settings) -> None:
        self.app = app
        self.server = server
        self.sessions = app.state.sessions
        self.port = settings.port
        self.address = f"ws://127.0.0.1:{settings.port}"
        self.http = f"http://127.0.0.1:{settings.port}"

    def connect(self, **options: Any) -> Client:
        """A connection whose session has not begun."""
        return Client(f"{self.address}/v1/stream", **options)

    def start(self, **settings: Any) -> Client:
        """A connection whose session has begun."""
        client = self.connect()
        client.say("session.start", **settings)
        client.started = client.hear("session.started")
        return client


class Client:
    """One connection; `heard` are all messages so far."""

    def __init__(self, uri: str, **options: Any) -> None:
        self._stack = ExitStack()
        self.socket = self._stack.enter_context(connect_socket(uri, compression=None, **options))
        self.heard: list[Message] = []
        self.started: Message = {}

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def say(self, type: str, **fields: Any) -> None:
        self.socket.send(json.dumps({"type": type, **fields}))

    def send(self, sequence: int, moment: float, picture: bytes | None = None) -> None:
        data = jpeg(sequence) if picture is None else picture
        self.socket.send(EncodedFrame(FrameFormat.JPEG, sequence, moment, data).pack())

    def receive(self, timeout: float = 20) -> Message:
        message = json.loads(self.socket.recv(timeout))
        self.heard.append(message)
        return message

    def hear(self, type: str, **fields: Any) -> Message:
        """The next message of a type with these fields; the others are kept in `heard`."""
        while True:
            message = self.receive()
            if message["type"] == type and fields.items() <= message.items():
                return message

    def rest(self) -> list[Message]:
        """All messages to the end of the connection; `code` is its close code then."""
        while True:
            try:
                self.receive()
            except ConnectionClosed:
                return self.heard

    def end(self) -> list[Message]:
        self.say("session.end")
        return self.rest()

    @property
    def code(self) -> int | None:
        return self.socket.protocol.close_code


def of_type(messages: list[Message], *types: str) -> list[Message]:
    return [message for message in messages if message["type"] in types]


def picture(seed: int = 0, width: int = 64, height: int = 48) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def jpeg(seed: int = 0) -> bytes:
    return encoded(picture(seed), "JPEG")


def encoded(image: Image.Image, format: str) -> bytes:
    target = io.BytesIO()
    image.save(target, format)
    return target.getvalue()


def until(condition: Callable[[], Any], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)
