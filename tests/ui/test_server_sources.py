"""Sources of the server's own: watched by name alone, shared where they are live, given back in the end."""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import terse_model
from PIL import Image
from servers import SILENT, SPEAKS, Client, Running, jpeg, of_type, picture, running, until

from stream.frames import Frame
from stream.sources import Source, SourceError, opening
from ui import server_sources, source_session
from ui.client import connect
from ui.inbox import FRAMES
from ui.protocol import NoticeCode
from ui.server_sources import parse_sources
from ui.settings import SettingsError
from videollm import VideoLLM
from videollm.cli import run

PICTURES = 8


@pytest.fixture(scope="module")
def model() -> Iterator[VideoLLM]:
    with terse_model() as model:
        yield model


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures, which is a clip of as many frames."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(PICTURES):
        picture(number).save(folder / f"{number}.png")
    return folder


class Camera(Source):
    """A live source that delivers `rate` pictures a second, until it is told to stop, fail or fall silent."""

    live = True
    rate = 50.0
    opened = 0
    open_now = 0
    broken = False
    unplugged = False

    def __init__(self) -> None:
        super().__init__()
        if Camera.unplugged:
            raise SourceError("rtsp://secret-host/ refused the connection")
        self.name = "camera"
        Camera.opened += 1
        Camera.open_now += 1
        self._is_open = True

    def _frames(self) -> Iterator[Frame]:
        start = time.monotonic()
        for number in itertools.count():
            time.sleep(1 / Camera.rate)
            if Camera.broken:
                raise SourceError("rtsp://secret-host/ stopped delivering pictures")
            yield Frame(round(time.monotonic() - start, 6), np.full((48, 64, 3), number % 256, np.uint8))

    def _release(self) -> None:
        Camera.open_now -= self._is_open
        self._is_open = False


@pytest.fixture
def camera(monkeypatch: pytest.MonkeyPatch) -> type[Camera]:
    """Stands behind camera:0: this machine may have none."""
    real = server_sources.open_source

    def open_source(uri: str, *arguments: float, **options: int | None) -> Source:
        return Camera() if uri == "camera:0" else real(uri, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(server_sources, "open_source", open_source)
    for name, value in {
        "opened": 0,
        "open_now": 0,
        "broken": False,
        "unplugged": False,
        "rate": 50.0,
    }.items():
        monkeypatch.setattr(Camera, name, value)
    return Camera


@pytest.fixture
def server(model: VideoLLM, pictures: Path, camera: type[Camera]) -> Iterator[Running]:
    with running(
        model, grace_seconds=5, sources={"demo": str(pictures), "hall": "camera:0"}
    ) as running_server:
        yield running_server
    assert readers() == []


def readers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("source ")]


def fetch(server: Running, path: str, **headers: str) -> tuple[int, bytes]:
    try:
        request = urllib.request.Request(server.http + path, headers=headers)
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def resumed(server: Running, client: Client) -> Client:
    again = server.connect()
    last = max(message["event_id"] for message in client.heard)
    again.say("session.start", resume_token=client.started["resume_token"], last_event_id=last)
    again.started = again.hear("session.started")
    return again


# What is offered


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["hall=camera:0", "hall=camera:1"], "given twice"),
        (["camera:0"], "NAME=SOURCE"),
        (["=camera:0"], "NAME=SOURCE"),
        (["hall="], "NAME=SOURCE"),
        (["../hall=camera:0"], "NAME=SOURCE"),
        (["a b=camera:0"], "NAME=SOURCE"),
        (["a" * 65 + "=camera:0"], "NAME=SOURCE"),
        (["demo=nowhere/demo.mp4"], "does not exist"),
        (["demo=-"], "standard input"),
        ([f"demo={__file__}"], "no video"),
    ],
)
def test_a_source_that_cannot_be_is_one_line_at_the_start(
    given: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SettingsError, match=message):
        parse_sources(given)
    arguments = [argument for one in given for argument in ("--source", one)]
    assert run(["serve", *arguments, "--model", "./never-loaded"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("videollm: --source")


def test_sources_are_taken_as_they_are_given(pictures: Path) -> None:
    given = {"demo": str(pictures), "tür-2": "rtsp://user:a=b@192.168.0.20/live", "hall": "camera:0"}
    assert parse_sources([f"{name}={uri}" for name, uri in given.items()]) == given


def test_names_are_listed_and_addresses_are_not(model: VideoLLM) -> None:
    sources = {"door": "rtsp://user:password@192.168.0.20/live", "hall": "camera:0"}
    with running(model, sources=sources, token="t") as server:
        assert fetch(server, "/v1/sources")[0] == 401
        status, body = fetch(server, "/v1/sources", Authorization="Bearer t")
        assert (status, json.loads(body)) == (200, {"sources": [{"name": "door"}, {"name": "hall"}]})


@pytest.mark.parametrize(
    "name",
    [
        "nobody",
        "DEMO",
        "demo ",
        "demo\0",
        "../demo",
        "../../etc/passwd",
        "/etc/passwd",
        "file:///etc/passwd",
        "http://169.254.169.254/",
        "rtsp://127.0.0.1/live",
        "camera:0",
        "-",
    ],
)
def test_nothing_but_an_offered_name_is_watched(server: Running, camera: type[Camera], name: str) -> None:
    with server.connect() as client:
        client.say("session.start", source=name)
        (error,) = client.rest()
        assert (error["code"], error["fatal"], client.code) == ("source.unknown", True, 4400)
    with server.connect() as client:
        (offered,) = [uri for uri in server.sessions.settings.sources.values() if uri != "camera:0"]
        client.say("session.start", source=offered[:64])
        assert client.rest()[-1]["code"] == "source.unknown"
    assert (camera.opened, readers(), server.sessions.all()) == (0, [], [])


@pytest.mark.parametrize("name", ["", "x" * 65, 1])
def test_a_name_that_is_none_is_refused(server: Running, name: object) -> None:
    with server.connect() as client:
        client.say("session.start", source=name)
        assert client.rest()[-1]["code"] == "message.invalid"


def test_a_session_that_finds_no_place_reads_nothing(model: VideoLLM, camera: type[Camera]) -> None:
    with running(model, max_sessions=1, sources={"hall": "camera:0"}) as server, server.start() as other:
        with server.connect() as client:
            client.say("session.start", source="hall")
            assert client.rest()[-1]["code"] == "server.full"
        assert (camera.opened, readers()) == (0, [])
        other.end()


# A clip


TIMES = [round(number / 60, 6) for number in range(PICTURES)]


def jpeg_of(number: int) -> bytes:
    return server_sources.encode_jpeg(np.asarray(picture(number)))


def test_a_clip_is_watched_to_its_end_and_nothing_is_dropped(server: Running) -> None:
    with server.start(source="demo", **SPEAKS) as client:
        assert client.started["credits"] == 0
        ended = client.hear("notice", code="source.ended")
        assert ended["text"] == "demo has ended"
        said = of_type(client.heard, "narration")
        assert [event["sequence"] for event in said] == list(range(PICTURES))
        assert [event["start"] for event in said] == TIMES
        client.say("question", id="1", text="What was there?")
        assert client.hear("answer")["sequence"] == PICTURES - 1
        figures = client.end()[-1]["figures"]
    assert (figures["frames_read"], figures["frames_dropped"]) == (PICTURES, 0)
    acks = of_type(client.heard, "frame.ack")
    assert sum(ack.get("read", 0) for ack in acks) == PICTURES
    assert {ack["credits"] for ack in acks} == {0}


def test_a_clip_waits_for_a_slow_model(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = server.sessions.engine.engine
    step = engine.step

    def slow_step() -> object:
        time.sleep(0.02)
        return step()

    monkeypatch.setattr(engine, "step", slow_step)
    with server.start(source="demo", **SPEAKS) as client:
        client.hear("notice", code="source.ended")
        figures = client.end()[-1]["figures"]
    assert (figures["frames_read"], figures["frames_dropped"]) == (PICTURES, 0)


def test_a_clip_plays_at_its_own_speed(server: Running) -> None:
    with server.start(source="demo", threshold=0.0, fps=10) as client:
        began = time.monotonic()
        client.hear("notice", code="source.ended")
        assert time.monotonic() - began > 0.9 * (PICTURES - 1) / 10
        client.end()


def test_everyone_sees_a_clip_from_its_beginning(server: Running) -> None:
    with server.start(source="demo", **SPEAKS) as one:
        one.hear("narration", sequence=2)
        with server.start(source="demo", **SPEAKS) as two:
            for client in (one, two):
                client.hear("notice", code="source.ended")
                client.end()
    texts = [[event["text"] for event in of_type(client.heard, "narration")] for client in (one, two)]
    assert len(texts[0]) == PICTURES and texts[0] == texts[1]


def test_a_reset_begins_a_clip_anew(server: Running) -> None:
    with server.start(source="demo", **SPEAKS) as client:
        client.hear("notice", code="source.ended")
        first = of_type(client.heard, "narration")
        client.say("session.reset")
        client.hear("notice", code="session.reset")
        client.hear("notice", code="source.ended")
        second = of_type(client.end(), "narration")[len(first) :]
    assert [event["text"] for event in second] == [event["text"] for event in first]
    assert [event["start"] for event in second] == [event["start"] for event in first]
    assert [event["sequence"] for event in second] == list(range(PICTURES, 2 * PICTURES))


def test_a_reset_in_the_middle_of_a_clip_loses_nothing_of_the_next_beginning(server: Running) -> None:
    with server.start(source="demo", **SPEAKS) as client:
        for _ in range(5):
            client.hear("narration")
            client.say("session.reset")
            client.hear("notice", code="session.reset")
        heard = len(client.heard)
        client.hear("notice", code="source.ended")
        last = of_type(client.heard[heard:], "narration")
        client.end()
    assert [event["start"] for event in last] == TIMES


def test_a_frame_that_was_on_its_way_at_a_reset_is_not_read(server: Running) -> None:
    with server.start(source="demo", **SPEAKS) as client:
        client.hear("notice", code="source.ended")
        (live,) = server.sessions.all()
        before, late = live._watch, Frame(99.0, np.zeros((48, 64, 3), np.uint8))
        client.say("session.reset")
        client.hear("notice", code="session.reset")
        before.show(late, b"")
        before.end(NoticeCode.SOURCE_FAILED, "too late")
        client.hear("notice", code="source.ended")
        assert client.end()[-1]["figures"]["frames_received"] == 2 * PICTURES
    assert not of_type(client.heard, "error") and live._shown == 0
    assert "too late" not in json.dumps(client.heard)


def test_a_flood_of_resets_opens_a_slow_source_but_once_at_a_time(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_source, opened = server_sources.open_source, 0

    def open_slowly(*arguments: object, **options: object) -> Source:
        nonlocal opened
        opened += 1
        time.sleep(0.3)
        return open_source(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(server_sources, "open_source", open_slowly)
    with server.start(source="demo", **SPEAKS) as client:
        for _ in range(300):
            client.say("session.reset")
        client.hear("notice", code="source.ended")
        assert readers() in ([], ["source demo"]) and opened <= 5
        assert [event["start"] for event in of_type(client.heard, "narration")] == TIMES
        client.end()


def test_a_reset_shows_a_folder_at_the_rate_that_holds_then(server: Running) -> None:
    with server.start(source="demo", threshold=1.0, fps=0.1) as client:
        client.hear("narration")
        client.say("session.update", fps=60)
        client.say("session.reset")
        client.hear("notice", code="session.reset")
        heard = len(client.heard)
        client.hear("notice", code="source.ended")
        assert [event["start"] for event in of_type(client.heard[heard:], "narration")] == TIMES
        client.end()


def test_damage_is_told_at_the_end(model: VideoLLM, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes((pictures / "1.png").read_bytes())
    (tmp_path / "2.png").write_bytes(b"no picture")
    with running(model, sources={"demo": str(tmp_path)}) as server, server.start(source="demo") as client:
        text = client.hear("notice", code="source.ended")["text"]
        assert text == "demo has ended: 1 of 2 pictures could not be read"
        client.end()


# A camera


def test_two_who_watch_a_camera_share_it(server: Running, camera: type[Camera]) -> None:
    with server.start(source="hall", **SPEAKS) as one:
        one.hear("narration")
        with server.start(source="hall", threshold=1.0, fps=1) as two:
            assert two.hear("narration")["start"] == 0.0
            assert (camera.opened, readers()) == (1, ["source hall"])
            one.end()
            assert two.hear("frame.ack", skipped=1)
            assert camera.open_now == 1
            two.end()
    until(lambda: (camera.open_now, readers()) == (0, []))
    with server.start(source="hall", **SPEAKS) as later:
        later.hear("narration")
        assert camera.opened == 2
        later.end()


def test_a_camera_that_outruns_the_model_loses_its_oldest_frames(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = server.sessions.engine.engine
    step = engine.step

    def slow_step() -> object:
        time.sleep(0.1)
        return step()

    monkeypatch.setattr(engine, "step", slow_step)
    with server.start(source="hall", **SPEAKS) as client:
        assert client.hear("notice", code="frames.dropped")["count"] >= 1
        (live,) = server.sessions.all()
        assert len(live._inbox._waiting) <= FRAMES
        client.say("session.end")
        client.rest()


def test_a_camera_that_falls_silent_is_told_and_tried_again_after_a_reset(
    server: Running, camera: type[Camera], caplog: pytest.LogCaptureFixture
) -> None:
    with server.start(source="hall", **SPEAKS) as client:
        client.hear("narration")
        camera.broken = True
        assert client.hear("notice", code="source.failed")["text"] == "hall gives no pictures"
        client.say("question", id="1", text="What was there?")
        client.hear("answer")
        until(lambda: (camera.open_now, readers()) == (0, []))
        camera.broken = False
        client.say("session.reset")
        client.hear("notice", code="session.reset")
        assert client.hear("narration")["start"] == 0.0
        client.end()
    assert "secret-host" in caplog.text  # the owner is told more than the client
    assert "secret-host" not in json.dumps(client.heard)


def test_a_camera_that_is_not_there_is_told(server: Running, camera: type[Camera]) -> None:
    camera.unplugged = True
    with server.start(source="hall") as client:
        client.hear("notice", code="source.failed")
        client.say("question", id="1", text="Anything?")
        assert "sequence" not in client.hear("answer")
        assert fetch(server, f"/v1/sessions/{client.started['session_id']}/picture") == (204, b"")
        client.end()
    assert "secret-host" not in json.dumps(client.heard)


def test_a_live_stream_of_the_network_is_shared_and_its_silence_told(
    model: VideoLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "STALL_SECONDS", 1.0)
    with socket.socket(type=socket.SOCK_DGRAM) as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"udp://127.0.0.1:{unused.getsockname()[1]}"
    enough = threading.Event()

    def send() -> None:
        with av.open(address, "w", format="mpegts") as container:
            stream = container.add_stream("libx264", rate=25, options={"g": "5", "tune": "zerolatency"})
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for index in itertools.takewhile(lambda _: not enough.is_set(), itertools.count()):
                frame = av.VideoFrame.from_ndarray(np.asarray(picture()), "rgb24")
                frame.pts = index
                container.mux(stream.encode(frame))
                time.sleep(0.02)

    sender = threading.Thread(target=send)
    sender.start()
    with (
        running(model, sources={"door": address}) as server,
        server.start(source="door", **SPEAKS) as one,
        server.start(source="door", **SPEAKS) as two,
    ):
        for client in (one, two):
            for _ in range(3):
                client.hear("narration")
        assert readers() == ["source door"]
        enough.set()
        sender.join()
        for client in (one, two):
            client.hear("notice", code="source.failed")
            client.say("question", id="1", text="What was there?")
            client.hear("answer")
            client.end()


def test_the_python_client_watches_a_source(server: Running) -> None:
    async def main() -> None:
        async with connect(server.address, source="demo", **SPEAKS) as stream:
            said = []
            async for event in stream:
                if event["type"] == "narration":
                    said.append(event["start"])
                if event.get("code") == "source.ended":
                    break
            assert said == TIMES
            assert await stream.offer(jpeg()) is None  # it has no credits
            assert await stream.ask("What was there?")
            await stream.end()

    asyncio.run(main())


# What a client may not do


def test_frames_of_a_client_are_refused_there(server: Running) -> None:
    with server.start(source="demo", **SPEAKS) as client:
        client.send(0, 0)
        client.send(10_000, 0)
        for _ in range(2):
            assert client.hear("error")["code"] == "frame.unexpected"
        client.hear("notice", code="source.ended")
        figures = client.end()[-1]["figures"]
    assert [event["sequence"] for event in of_type(client.heard, "narration")] == list(range(PICTURES))
    assert (figures["frames_received"], figures["frames_refused"]) == (PICTURES, 0)


def test_the_source_cannot_be_changed(server: Running) -> None:
    with server.start(source="demo") as client:
        client.say("session.update", source="hall")
        assert client.hear("error")["code"] == "message.invalid"
        client.end()


# Pictures


def test_the_pictures_of_moments_are_those_of_the_source(server: Running) -> None:
    with server.start(source="demo", **SPEAKS) as client:
        path = f"/v1/sessions/{client.started['session_id']}"
        for number in range(PICTURES):
            sequence = client.hear("narration")["sequence"]
            assert fetch(server, f"{path}/pictures/{sequence}") == (200, jpeg_of(number))
        client.hear("notice", code="source.ended")
        assert fetch(server, f"{path}/picture") == (200, jpeg_of(PICTURES - 1))
        client.end()
    assert fetch(server, f"{path}/pictures/0")[0] == 200  # within the time of grace


def test_of_a_silent_stream_the_pictures_of_answers_are_kept_and_no_others(server: Running) -> None:
    with server.start(source="demo", **SILENT) as client:
        client.hear("notice", code="source.ended")
        client.say("question", id="1", text="What?")
        sequence = client.hear("answer")["sequence"]
        path = f"/v1/sessions/{client.started['session_id']}/pictures"
        assert fetch(server, f"{path}/{sequence}") == (200, jpeg_of(PICTURES - 1))
        for other in ("0", "-1", "x", "1e3", "9" * 5000, "..%2f0"):
            assert fetch(server, f"{path}/{other}")[0] == 404
        client.end()


def test_the_latest_moments_keep_their_pictures(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_session, "KEPT_PICTURES", 3)
    with server.start(source="demo", **SPEAKS) as client:
        client.hear("notice", code="source.ended")
        path = f"/v1/sessions/{client.started['session_id']}/pictures"
        found = [fetch(server, f"{path}/{number}")[0] for number in range(PICTURES)]
        client.end()
    assert found == [404] * (PICTURES - 3) + [200] * 3


def test_of_sessions_whose_client_sends_there_are_no_pictures(server: Running) -> None:
    with server.start(**SPEAKS) as client:
        client.send(0, 0, jpeg())
        client.hear("narration")
        path = f"/v1/sessions/{client.started['session_id']}"
        assert fetch(server, f"{path}/picture")[0] == fetch(server, f"{path}/pictures/0")[0] == 404
        assert fetch(server, "/v1/sessions/none/picture")[0] == 404
        client.end()


def test_pictures_need_the_token(model: VideoLLM, pictures: Path) -> None:
    with (
        running(model, sources={"demo": str(pictures)}, token="t") as server,
        server.start(source="demo", token="t", **SPEAKS) as client,
    ):
        client.hear("narration")
        path = f"/v1/sessions/{client.started['session_id']}"
        for one in ("picture", "pictures/0"):
            assert fetch(server, f"{path}/{one}")[0] == 401
            status, body = fetch(server, f"{path}/{one}", Authorization="Bearer t")
            assert status == 200 and Image.open(io.BytesIO(body)).size == (64, 48)
        client.end()


# Breaks and ends


def test_after_a_break_all_that_was_missed_comes_and_its_pictures(server: Running) -> None:
    client = server.start(source="demo", **SPEAKS)
    client.hear("narration")
    (live,) = server.sessions.all()
    client.socket.socket.close()
    until(lambda: any(getattr(event, "code", "") == "source.ended" for event in live.outbox.kept()))
    with resumed(server, client) as again:
        assert again.started["resumed"] and again.started["credits"] == 0
        again.hear("notice", code="source.ended")
        again.end()
    said = of_type(client.heard + again.heard, "narration")
    assert [event["sequence"] for event in said] == list(range(PICTURES))
    for event in said:
        path = f"/v1/sessions/{live.id}/pictures/{event['sequence']}"
        assert fetch(server, path) == (200, jpeg_of(event["sequence"]))


def test_a_camera_is_watched_on_while_the_connection_is_broken(server: Running) -> None:
    client = server.start(source="hall", **SPEAKS)
    client.hear("narration")
    (live,) = server.sessions.all()
    client.socket.socket.close()
    until(lambda: server.sessions.state(live) == "parked")
    before = live.figures().narrations
    until(lambda: live.figures().narrations > before + 2)
    with resumed(server, client) as again:
        again.end()
    said = [event["sequence"] for event in of_type(client.heard + again.heard, "narration")]
    assert said == sorted(set(said)) and len(said) == live.figures().narrations


@pytest.mark.parametrize("source", ["demo", "hall"])
def test_after_the_time_of_grace_nothing_is_read(
    model: VideoLLM, pictures: Path, camera: type[Camera], source: str
) -> None:
    sources = {"demo": str(pictures), "hall": "camera:0"}
    with running(model, grace_seconds=0.2, max_sessions=1, sources=sources) as server:
        client = server.start(source=source, threshold=1.0, fps=0.1 if source == "demo" else 60)
        client.hear("narration")
        assert readers() == [f"source {source}"]
        client.socket.close()
        until(lambda: not server.sessions.all())
        until(lambda: (readers(), camera.open_now) == ([], 0), seconds=2)


@pytest.mark.parametrize("source", ["demo", "hall"])
def test_the_end_of_a_session_is_the_end_of_its_reading(
    server: Running, camera: type[Camera], source: str
) -> None:
    with server.start(source=source, threshold=1.0, fps=0.1 if source == "demo" else 60) as client:
        client.hear("narration")
        client.say("session.end")
        assert client.rest()[-1]["reason"] == "client"
        until(lambda: (readers(), camera.open_now) == ([], 0), seconds=2)


def test_a_stopping_server_reads_no_further_and_says_what_it_read(
    model: VideoLLM, pictures: Path, camera: type[Camera]
) -> None:
    with running(model, sources={"demo": str(pictures), "hall": "camera:0"}) as server:
        one, two = (server.start(source=name, **SPEAKS) for name in ("demo", "hall"))
        for client in (one, two):
            client.hear("narration")
        server.server.should_exit = True
        for client in (one, two):
            ended = client.rest()[-1]
            assert (ended["reason"], client.code) == ("server.shutdown", 1001)
            said = of_type(client.heard, "narration")
            assert len(said) == ended["figures"]["frames_read"]
    assert (readers(), camera.open_now) == ([], 0)


def test_where_the_model_fails_reading_ends(
    server: Running, camera: type[Camera], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    with server.start(source="hall", **SPEAKS) as client:
        client.hear("narration")
        monkeypatch.setattr(server.sessions.engine.engine, "step", fail)
        assert client.rest()[-1]["reason"] == "server.error"
        until(lambda: (readers(), camera.open_now) == ([], 0), seconds=2)


def test_help_shows_how(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", "--help"]) == 0
    assert re.search(r"--source door=rtsp://", capsys.readouterr().out)
