"""What a server on a network refuses, and that it goes on afterwards."""

from __future__ import annotations

import json
import shutil
import ssl
import struct
import subprocess
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import small_model
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from servers import Client, Running, encoded, jpeg, of_type, running
from websockets.exceptions import InvalidStatus

from ui.media import MediaError, allowed_path
from ui.protocol import (
    HEADER,
    MAX_FRAME_BYTES,
    MAX_MESSAGE_BYTES,
    EncodedFrame,
    ErrorCode,
    FrameFormat,
    ProtocolError,
    parse_frame,
    parse_message,
)
from ui.settings import Settings, SettingsError
from videollm import VideoLLM
from videollm.cli import run

TOKEN = "correct-horse"
FUZZ = 1000
# Set by the server itself, and unset by pytest.
pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")


@pytest.fixture(scope="module")
def model() -> VideoLLM:
    return small_model()


@pytest.fixture(scope="module")
def open_server(model: VideoLLM) -> Iterator[Running]:
    with running(model, max_sessions=64) as server:
        yield server


@pytest.fixture(scope="module")
def locked_server(model: VideoLLM) -> Iterator[Running]:
    with running(model, token=TOKEN, origins=("https://ours.example",), max_sessions=16) as server:
        yield server


# Settings


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.0.5", "::", "example.org"])
def test_beyond_this_machine_a_token_is_needed(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", "--host", host, "--model", "./never-loaded"]) == 1
    message = capsys.readouterr().err
    assert "--token" in message and len(message.splitlines()) == 1
    Settings(host=host, token=TOKEN).check()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"certificate": Path("cert.pem")}, "both"),
        ({"certificate": Path("no.pem"), "key": Path("no.key")}, "is not there"),
        ({"folders": (Path("nowhere"),)}, "is no folder"),
        ({"token": "naïve"}, "ASCII"),
    ],
)
def test_settings_that_cannot_be_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Settings(**fields).check()  # type: ignore[arg-type]


def test_a_port_that_is_taken_is_one_line(open_server: Running, capsys: pytest.CaptureFixture[str]) -> None:
    port = open_server.http.rsplit(":", 1)[1]
    assert run(["serve", "--port", port, "--model", "./never-loaded"]) == 1
    assert "choose another with --port" in capsys.readouterr().err


def test_connections_that_show_nothing_are_counted(
    open_server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ui.connection.MOST_STARTING", 2)
    with open_server.connect(), open_server.connect(), open_server.connect() as third:
        assert third.hear("error")["code"] == "server.full"
    with open_server.start() as later:
        assert later.started["type"] == "session.started"


# Tokens and origins


@pytest.mark.parametrize(
    ("header", "given", "code"),
    [
        (None, None, "auth.required"),
        ("Basic abc", None, "auth.required"),
        ("Bearer wrong", None, "auth.wrong"),
        ("Bearer wrong", TOKEN, "auth.wrong"),
        (None, "wrong", "auth.wrong"),
        (None, TOKEN + " ", "auth.wrong"),
        (None, "ключ", "auth.wrong"),
    ],
)
def test_a_wrong_token_is_refused(
    locked_server: Running, header: str | None, given: str | None, code: str
) -> None:
    headers = {"Authorization": header} if header else {}
    with locked_server.connect(additional_headers=headers) as client:
        client.say("session.start", **({"token": given} if given else {}))
        assert client.rest()[-1]["code"] == code
        assert client.code == 4401


def test_the_right_token_is_taken_either_way(locked_server: Running) -> None:
    with locked_server.connect(additional_headers={"Authorization": f"Bearer {TOKEN}"}) as client:
        client.say("session.start")
        client.hear("session.started")
        client.end()
    with locked_server.start(token=TOKEN) as client:
        client.end()


@pytest.mark.parametrize("path", ["/v1/sessions", "/v1/sessions/x/events", "/metrics", "/v1/models"])
def test_http_needs_the_token_too(locked_server: Running, path: str) -> None:
    assert fetch(locked_server, path)[0] == 401
    assert fetch(locked_server, path, Authorization="Bearer wrong")[0] == 401
    assert fetch(locked_server, path, Authorization=f"Bearer {TOKEN}")[0] in (200, 404)
    assert fetch(locked_server, "/health")[0] == 200


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("own", True),
        ("https://ours.example", True),
        ("https://evil.example", False),
        ("https://ours.example.evil.example", False),
        ("null", False),
        ("http://127.0.0.1:1", False),
    ],
)
def test_pages_of_other_origins_are_kept_out(locked_server: Running, origin: str, allowed: bool) -> None:
    if origin == "own":
        origin = locked_server.http
    if allowed:
        with locked_server.connect(origin=origin) as client:
            client.say("session.start", token=TOKEN)
            client.hear("session.started")
            client.end()
    else:
        with pytest.raises(InvalidStatus) as refusal:
            locked_server.connect(origin=origin)
        assert refusal.value.response.status_code == 403
    assert fetch(locked_server, "/health", Origin=origin)[0] == (200 if allowed else 403)


def test_without_a_token_no_other_name_leads_here(open_server: Running) -> None:
    port = open_server.http.rsplit(":", 1)[1]
    assert fetch(open_server, "/health", Host=f"evil.example:{port}")[0] == 403
    assert fetch(open_server, "/health", Host=f"localhost:{port}")[0] == 200
    assert fetch(open_server, "/health", Host="[::1")[0] == 403


def test_tls_is_spoken(model: VideoLLM, tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    options = ["-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    options += ["-addext", "subjectAltName=IP:127.0.0.1", "-out", certificate, "-keyout", key]
    subprocess.run([openssl, "req", "-x509", *options], check=True, capture_output=True)
    trusting = ssl.create_default_context(cafile=str(certificate))
    with (
        running(model, certificate=certificate, key=key) as server,
        Client(f"{server.address.replace('ws:', 'wss:')}/v1/stream", ssl=trusting) as client,
    ):
        client.say("session.start", threshold=0.0)
        client.send(0, 0)
        client.hear("frame.ack")
        client.end()


# Messages


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("{", "message.malformed"),
        ("[" * 60_000, "message.invalid"),
        ("[]", "message.invalid"),
        ('{"type": "dance"}', "message.invalid"),
        ('{"type": "session.update", "fps": 0}', "message.invalid"),
        ('{"type": "session.update", "fps": 1e999}', "message.invalid"),
        ('{"type": "session.update", "threshold": 2}', "message.invalid"),
        ('{"type": "session.update", "speed": 2}', "message.invalid"),
        ('{"type": "question", "id": "1"}', "message.invalid"),
        ('{"type": "question", "id": "1", "text": "' + "a" * 2001 + '"}', "message.invalid"),
        ('{"type": "question", "id": "1", "text": "  "}', "question.invalid"),
        ('{"type": "session.start"}', "start.repeated"),
    ],
    ids=lambda value: value[:40],
)
def test_a_bad_message_is_told_and_the_session_goes_on(open_server: Running, message: str, code: str) -> None:
    with open_server.start(threshold=0.0) as client:
        client.socket.send(message)
        assert client.hear("error")["code"] == code
        client.send(0, 0)
        client.hear("frame.ack")
        client.end()


@pytest.mark.parametrize(
    ("message", "code", "close"),
    [
        ("{", "message.malformed", 4400),
        ('{"type": "session.start", "version": 2}', "version.unsupported", 4400),
        ('{"type": "session.start", "fps": -1}', "message.invalid", 4400),
        ('{"type": "session.end"}', "start.expected", 4400),
        (b"VF", "start.expected", 4400),
        ('{"type": "session.start", "resume_token": "guess"}', "session.unknown", 4404),
        (json.dumps({"type": "session.start", "prompt": "why " * 500}), "prompt.too_long", 4400),
        ("x" * (MAX_MESSAGE_BYTES + 1), "message.too_large", 4413),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_bad_start_closes(open_server: Running, message: str | bytes, code: str, close: int) -> None:
    with open_server.connect() as client:
        client.socket.send(message)
        (error,) = client.rest()
        assert (error["code"], error["fatal"], client.code) == (code, True, close)


def test_too_long_a_text_closes(open_server: Running) -> None:
    with open_server.start() as client:
        client.say("question", id="1", text="a" * MAX_MESSAGE_BYTES)
        assert of_type(client.rest(), "error")[-1]["code"] == "message.too_large"
        assert client.code == 4413


def test_a_question_too_long_for_the_context_is_refused(model: VideoLLM) -> None:
    with running(model) as server, server.start() as client:
        server.sessions.engine.engine.context = 400
        client.say("question", id="1", text="why " * 400)
        error = client.hear("error")
        assert (error["code"], error["id"]) == ("question.invalid", "1")
        client.end()


def test_what_is_no_utf8_closes_as_websockets_say(open_server: Running) -> None:
    with open_server.start() as client:
        client.socket.send(b"\xff\xfe", text=True)
        client.rest()
        assert client.code == 1007


def test_a_message_above_all_limits_closes_as_websockets_say(open_server: Running) -> None:
    with open_server.start() as client:
        # The header alone: what is announced is not read.
        client.socket.socket.sendall(b"\x82\xff" + struct.pack(">Q", MAX_FRAME_BYTES + 1) + bytes(4))
        client.rest()
        assert client.code == 1009


# Frames


def bomb_png(width: int = 10_000, height: int = 10_000) -> bytes:
    """100 megapixels of white in 12 kB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    row = b"\0" + b"\xff" * (width // 8)
    body = b"".join([packer.compress(row * 100) for _ in range(height // 100)]) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def bomb_jpeg() -> bytes:
    return encoded(Image.new("L", (10_000, 10_000)), "JPEG")


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (b"VF", "frame.malformed"),
        (b"XX" + EncodedFrame(FrameFormat.JPEG, 1, 0, jpeg()).pack()[2:], "frame.malformed"),
        (HEADER.pack(b"VF", 9, 0, 1, 0.0) + jpeg(), "frame.malformed"),
        (HEADER.pack(b"VF", 1, 1, 1, 0.0) + jpeg(), "frame.malformed"),
        (HEADER.pack(b"VF", 1, 0, 1, float("nan")) + jpeg(), "frame.malformed"),
        (HEADER.pack(b"VF", 1, 0, 1, 1.7e12) + jpeg(), "frame.malformed"),
        (EncodedFrame(FrameFormat.JPEG, 0, 9, jpeg()).pack(), "frame.out_of_order"),
        (EncodedFrame(FrameFormat.JPEG, 1, -9, jpeg()).pack(), "frame.out_of_order"),
        (EncodedFrame(FrameFormat.JPEG, 1, 9, b"no picture").pack(), "frame.undecodable"),
        (EncodedFrame(FrameFormat.JPEG, 1, 9, jpeg()[:300]).pack(), "frame.undecodable"),
        (
            EncodedFrame(FrameFormat.JPEG, 1, 9, encoded(Image.new("L", (9, 9)), "PNG")).pack(),
            "frame.undecodable",
        ),
        (
            EncodedFrame(FrameFormat.PNG, 1, 9, encoded(Image.new("L", (9, 9)), "GIF")).pack(),
            "frame.undecodable",
        ),
        (EncodedFrame(FrameFormat.PNG, 1, 9, bomb_png()).pack(), "frame.too_large"),
        (EncodedFrame(FrameFormat.PNG, 1, 9, bomb_png(30_000, 30_000)).pack(), "frame.too_large"),
        (EncodedFrame(FrameFormat.JPEG, 1, 9, bomb_jpeg()).pack(), "frame.too_large"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{len(value)}-bytes",
)
def test_a_bad_frame_is_told_its_credit_comes_back_and_the_session_goes_on(
    open_server: Running, message: bytes, code: str
) -> None:
    with open_server.start(threshold=0.0, fps=60) as client:
        client.send(0, 0)
        client.hear("frame.ack")
        client.socket.send(message)
        assert client.hear("error")["code"] == code
        assert client.hear("frame.ack")["refused"] == 1
        client.send(2, 10)
        assert client.hear("frame.ack")["read"] == 1
        client.end()


def test_a_bomb_costs_neither_time_nor_memory() -> None:
    import tracemalloc

    from ui.decoding import decode

    for format, data in ((FrameFormat.PNG, bomb_png()), (FrameFormat.JPEG, bomb_jpeg())):
        tracemalloc.start()
        began = time.perf_counter()
        with pytest.raises(ProtocolError, match="10000 x 10000"):
            decode(EncodedFrame(format, 1, 0, data), 64)
        assert tracemalloc.get_traced_memory()[1] < 10 * len(data) + 1e6
        tracemalloc.stop()
        assert time.perf_counter() - began < 0.5


def test_a_flood_of_tiny_frames_harms_nobody_else(open_server: Running) -> None:
    with open_server.start(fps=60, threshold=0.0) as flood, open_server.start(threshold=0.0) as other:
        for index in range(3000):
            flood.send(index, index, b"x")
        other.send(0, 0)
        assert other.hear("frame.ack")["read"] == 1
        figures = flood.end()[-1]["figures"]
        other.end()
    assert figures["frames_refused"] + figures["frames_dropped"] == figures["frames_received"] == 3000


@given(data=st.binary(max_size=64) | st.binary(max_size=64).map(lambda rest: b"VF\x01\x00" + rest))
@example(b"")
@settings(max_examples=FUZZ, deadline=None)
def test_any_bytes_are_a_frame_or_a_protocol_error(data: bytes) -> None:
    try:
        frame = parse_frame(data)
    except ProtocolError as error:
        assert error.code in (ErrorCode.FRAME_MALFORMED, ErrorCode.FRAME_TOO_LARGE)
    else:
        assert frame.pack() == data


_fields = st.dictionaries(
    st.sampled_from(["fps", "threshold", "id", "text", "events", "version", "token", "last_event_id"]),
    st.none() | st.booleans() | st.floats() | st.integers() | st.text() | st.lists(st.text(), max_size=2),
)
_types = st.sampled_from(["session.start", "question", "session.update", "session.reset", "session.end", "x"])


@given(
    data=st.text()
    | st.binary()
    | st.builds(lambda type, fields: json.dumps({"type": type} | fields), _types, _fields)
)
@settings(max_examples=FUZZ, deadline=None)
def test_any_text_is_a_message_or_a_protocol_error(data: str | bytes) -> None:
    try:
        parse_message(data)
    except ProtocolError as error:
        assert error.code in (ErrorCode.MESSAGE_MALFORMED, ErrorCode.MESSAGE_INVALID)


@given(
    frame=st.builds(
        EncodedFrame,
        format=st.sampled_from(FrameFormat),
        sequence=st.integers(0, 2**32 - 1),
        time=st.floats(-1e12, 1e12),
        data=st.binary(min_size=1),
    )
)
def test_a_frame_survives_the_way(frame: EncodedFrame) -> None:
    assert parse_frame(frame.pack()) == frame


# Paths


def test_only_files_inside_the_allowed_folders_are_read(tmp_path: Path) -> None:
    allowed, secret = tmp_path / "clips", tmp_path / "secret.mp4"
    allowed.mkdir()
    secret.touch()
    (allowed / "a b.mp4").touch()
    (allowed / "link.mp4").symlink_to(secret)
    (tmp_path / "clips-too").mkdir()
    (tmp_path / "clips-too" / "c.mp4").touch()
    assert allowed_path(f"file://{allowed}/a%20b.mp4", [allowed]) == allowed / "a b.mp4"
    for url in (
        f"file://{secret}",
        f"file://{allowed}/../secret.mp4",
        f"file://{allowed}/%2e%2e/secret.mp4",
        f"file://{allowed}/link.mp4",
        f"file://{tmp_path}/clips-too/c.mp4",
        f"file://{allowed}",
        f"file://{allowed}/a%00b.mp4",
        f"file://{allowed}/{'a' * 5000}",
        f"file://host{allowed}/a%20b.mp4",
        "http://127.0.0.1/a.mp4",
        "rtsp://127.0.0.1/a",
        "camera:0",
        str(secret),
    ):
        with pytest.raises(MediaError):
            allowed_path(url, [allowed])
    with pytest.raises(MediaError):
        allowed_path(f"file://{allowed}/a%20b.mp4", [])


@pytest.mark.parametrize(
    "path", ["/static/../app.py", "/static/%2e%2e/app.py", "/static//etc/passwd", "/v1/sessions/..%2f..%2fx"]
)
def test_no_path_leads_out(open_server: Running, path: str) -> None:
    assert fetch(open_server, path)[0] == 404


def fetch(server: Running, path: str, **headers: str) -> tuple[int, bytes]:
    request = urllib.request.Request(server.http + path, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
