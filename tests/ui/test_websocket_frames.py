"""RFC 6455 frame by frame, over a plain socket: the kinds of cases that Autobahn's fuzzing client has, at the
live endpoint. Pings are answered, fragments joined, and what is malformed closes with the right code."""

from __future__ import annotations

import base64
import json
import os
import socket
import struct
from collections.abc import Iterator

import pytest
from conftest import small_model
from servers import Running, running

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
START = json.dumps({"type": "session.start"}).encode()
PROTOCOL_ERROR, INVALID_TEXT, TOO_BIG = 1002, 1007, 1009


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(small_model(), max_sessions=64) as started:
        yield started


@pytest.fixture
def raw(server: Running) -> Iterator[Raw]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connected:
        yield Raw(connected, server.port)


class Raw:
    """A WebSocket of which the test makes every byte."""

    def __init__(self, connected: socket.socket, port: int) -> None:
        self.socket = connected
        key = base64.b64encode(os.urandom(16)).decode()
        request = (
            f"GET /v1/stream HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        connected.sendall(request.encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += connected.recv(1)
        assert b" 101 " in head.splitlines()[0]

    def send(
        self, opcode: int, payload: bytes = b"", *, final: bool = True, reserved: int = 0, masked: bool = True
    ) -> None:
        head = bytes([final << 7 | reserved << 4 | opcode])
        size = len(payload)
        flag = masked << 7
        if size < 126:
            head += bytes([flag | size])
        elif size < 1 << 16:
            head += struct.pack(">BH", flag | 126, size)
        else:
            head += struct.pack(">BQ", flag | 127, size)
        mask = os.urandom(4) if masked else b""
        body = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload)) if masked else payload
        self.socket.sendall(head + mask + body)

    def receive(self) -> tuple[int, bytes]:
        first, second = self._exactly(2)
        size = second & 0x7F
        if size == 126:
            (size,) = struct.unpack(">H", self._exactly(2))
        elif size == 127:
            (size,) = struct.unpack(">Q", self._exactly(8))
        return first & 0xF, self._exactly(size)

    def close_code(self) -> int:
        """Of the close frame that comes next, behind messages."""
        while True:
            opcode, payload = self.receive()
            if opcode == CLOSE:
                return struct.unpack(">H", payload[:2])[0]

    def said(self) -> str:
        """The type of the next message."""
        while True:
            opcode, payload = self.receive()
            if opcode == TEXT:
                return json.loads(payload)["type"]

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self.socket.recv(size - len(data))
            assert part, "the connection ended without a close frame"
            data += part
        return data


@pytest.mark.parametrize("payload", [b"", b"hello", bytes(range(125)), b"\xff" * 125])
def test_a_ping_is_answered_with_what_it_holds(raw: Raw, payload: bytes) -> None:
    raw.send(PING, payload)
    assert raw.receive() == (PONG, payload)


def test_pongs_that_nobody_asked_for_are_ignored(raw: Raw) -> None:
    raw.send(PONG, b"unasked")
    raw.send(PING, b"still there?")
    assert raw.receive() == (PONG, b"still there?")


@pytest.mark.parametrize("pieces", [1, 2, 3, len(START)])
def test_fragments_are_joined_and_pings_between_them_answered(raw: Raw, pieces: int) -> None:
    cuts = [len(START) * piece // pieces for piece in range(pieces + 1)]
    for index in range(pieces):
        opcode = TEXT if index == 0 else CONTINUATION
        raw.send(opcode, START[cuts[index] : cuts[index + 1]], final=index == pieces - 1)
        if index < pieces - 1:
            raw.send(PING, b"between")
            assert raw.receive() == (PONG, b"between")
    assert raw.said() == "session.started"


def test_empty_fragments_are_no_end(raw: Raw) -> None:
    raw.send(TEXT, b"", final=False)
    raw.send(CONTINUATION, START, final=False)
    raw.send(CONTINUATION, b"")
    assert raw.said() == "session.started"


@pytest.mark.parametrize("opcode", [0x3, 0x4, 0x5, 0x6, 0x7, 0xB, 0xC, 0xD, 0xE, 0xF])
def test_reserved_opcodes_are_refused(raw: Raw, opcode: int) -> None:
    raw.send(opcode, b"x")
    assert raw.close_code() == PROTOCOL_ERROR


@pytest.mark.parametrize("reserved", [1, 2, 3, 4, 5, 6, 7])
@pytest.mark.parametrize("opcode", [TEXT, BINARY, PING, CLOSE])
def test_reserved_bits_are_refused(raw: Raw, opcode: int, reserved: int) -> None:
    raw.send(opcode, struct.pack(">H", 1000) if opcode == CLOSE else b"x", reserved=reserved)
    assert raw.close_code() == PROTOCOL_ERROR


def test_a_frame_without_mask_is_refused(raw: Raw) -> None:
    raw.send(TEXT, START, masked=False)
    assert raw.close_code() == PROTOCOL_ERROR


@pytest.mark.parametrize("opcode", [PING, PONG, CLOSE])
def test_control_frames_are_short_and_whole(server: Running, opcode: int) -> None:
    for payload, final in ((struct.pack(">H", 1000) + b"x" * 124, True), (b"", False)):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connected:
            raw = Raw(connected, server.port)
            raw.send(opcode, payload, final=final)
            assert raw.close_code() == PROTOCOL_ERROR


def test_fragments_come_in_order(server: Running) -> None:
    wrong = [
        [(CONTINUATION, True)],  # of nothing
        [(CONTINUATION, False)],
        [(TEXT, False), (TEXT, True)],  # a message within another
        [(TEXT, False), (BINARY, True)],
    ]
    for frames in wrong:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connected:
            raw = Raw(connected, server.port)
            for opcode, final in frames:
                raw.send(opcode, b"x", final=final)
            assert raw.close_code() == PROTOCOL_ERROR


@pytest.mark.parametrize(
    "text",
    [
        b"\x80",  # a continuation byte alone
        b"\xc0\xaf",  # overlong
        b"\xe0\x80\xaf",
        b"\xf0\x80\x80\xaf",
        b"\xed\xa0\x80",  # a surrogate
        b"\xf4\x90\x80\x80",  # behind the last code point
        b"\xf8\x88\x80\x80\x80",
        b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80edited",
        b"abc\xe2\x82",  # cut short
        b"\xff\xfe",
    ],
)
def test_text_that_is_not_utf_8_is_refused_whole_and_in_fragments(server: Running, text: bytes) -> None:
    for cut in (len(text), 1):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connected:
            raw = Raw(connected, server.port)
            raw.send(TEXT, text[:cut], final=cut == len(text))
            if cut < len(text):
                raw.send(CONTINUATION, text[cut:])
            assert raw.close_code() == INVALID_TEXT


@pytest.mark.parametrize("code", [1000, 1001, 1003, 1007, 1011, 3000, 3999, 4000, 4999])
def test_a_close_is_answered_in_kind(raw: Raw, code: int) -> None:
    raw.send(CLOSE, struct.pack(">H", code) + "until later, ✓".encode())
    assert raw.close_code() == code


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535])
def test_codes_that_nobody_may_send_are_refused(raw: Raw, code: int) -> None:
    raw.send(CLOSE, struct.pack(">H", code))
    assert raw.close_code() == PROTOCOL_ERROR


def test_a_close_with_half_a_code_or_a_wrong_reason_is_refused(server: Running) -> None:
    for payload, expected in ((b"\x03", PROTOCOL_ERROR), (b"\x03\xe8\xff\xfe", INVALID_TEXT)):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connected:
            raw = Raw(connected, server.port)
            raw.send(CLOSE, payload)
            assert raw.close_code() == expected


def test_a_close_without_a_code_is_answered(raw: Raw) -> None:
    raw.send(CLOSE)
    opcode, _ = raw.receive()
    assert opcode == CLOSE


def test_a_size_beyond_the_limit_closes_before_its_bytes_come(raw: Raw) -> None:
    raw.socket.sendall(bytes([0x82]) + struct.pack(">BQ", 0x80 | 127, 1 << 40) + b"mask")
    assert raw.close_code() == TOO_BIG
