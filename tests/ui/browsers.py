"""A real Chromium with a camera of our choice, and a network between it and the server that can break."""

from __future__ import annotations

import math
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self

import av
import pytest
from conftest import NO_CHROMIUM
from playwright.sync_api import Browser, Playwright, sync_playwright

CAMERA_FPS = 5


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    if shutil.which("chromium") is None:
        pytest.skip(NO_CHROMIUM)
    with sync_playwright() as driver:
        yield driver


def launch(driver: Playwright, *arguments: str, camera: Path | None = None) -> Browser:
    """Chromium, with a camera that films a clip over and over, or with none."""
    if camera is not None:
        arguments += (
            "--use-fake-ui-for-media-stream",
            "--use-fake-device-for-media-stream",
            f"--use-file-for-fake-video-capture={camera}",
        )
    return driver.chromium.launch(executable_path=shutil.which("chromium"), args=list(arguments))


def write_camera(clip: Path, target: Path, seconds: float) -> Path:
    """The beginning of a clip as Chromium's camera takes it, YUV4MPEG2 at `CAMERA_FPS`."""
    with av.open(clip) as container, target.open("wb") as out:
        (stream,) = container.streams.video
        header = f"YUV4MPEG2 W{stream.width} H{stream.height} F{CAMERA_FPS}:1 Ip A1:1 C420jpeg\n"
        out.write(header.encode())
        written = 0
        for frame in container.decode(stream):
            if frame.time >= seconds:
                break
            if frame.time * CAMERA_FPS >= written:
                out.write(b"FRAME\n" + frame.to_ndarray(format="yuv420p").tobytes())
                written += 1
    return target


class Network:
    """A port in front of another: it forwards what comes, until it is told to be silent, slow or gone."""

    bytes_per_second: float = math.inf
    """From the client to the server."""

    def __init__(self, port: int) -> None:
        self._behind = port
        self._flowing = threading.Event()
        self._flowing.set()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._closed = False
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        self.restore()
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """All connections break."""
        for end in list(self._open):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def stall(self) -> None:
        """Nothing comes through any more, and nobody is told."""
        self._flowing.clear()

    def restore(self) -> None:
        self._flowing.set()

    def _accept(self) -> None:
        while not self._closed:
            with suppress(OSError):
                client, _ = self._listener.accept()
                self._flowing.wait()
                server = socket.create_connection(("127.0.0.1", self._behind))
                self._open |= {client, server}
                for source, target, slows in ((client, server, True), (server, client, False)):
                    threading.Thread(target=self._forward, args=(source, target, slows), daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket, slows: bool) -> None:
        with suppress(OSError):
            while data := source.recv(4096):
                self._flowing.wait()
                if slows:
                    time.sleep(len(data) / self.bytes_per_second)
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._open.discard(source)
        source.close()
