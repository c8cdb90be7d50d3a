"""The live protocol over real sockets: every message, flow control, resuming, and the ends of connections."""

from __future__ import annotations

import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest
from conftest import terse_model
from servers import SILENT, SPEAKS, Client, Running, encoded, jpeg, of_type, picture, running, until
from websockets.exceptions import ConnectionClosed

from stream import session
from stream.frames import Frame
from stream.session import Session
from ui import connection, outbox, serving
from ui.decoding import decode
from ui.inbox import FRAMES
from ui.protocol import EncodedFrame, FrameFormat
from videollm import VideoLLM


@pytest.fixture(scope="module")
def model() -> Iterator[VideoLLM]:
    with terse_model() as model:
        yield model


@pytest.fixture
def server(model: VideoLLM) -> Iterator[Running]:
    with running(model, grace_seconds=5) as running_server:
        yield running_server


# What is said


def test_a_stream_is_narrated_as_the_session_alone_would(server: Running, model: VideoLLM) -> None:
    with server.start(**SPEAKS) as client:
        for index in range(4):
            client.send(10 + index, 500 + index / 2)
        messages = client.end()
    alone = Session(model, threshold=1.0)
    side = server.sessions.max_side
    frames = [
        Frame(i / 2, decode(EncodedFrame(FrameFormat.JPEG, i, 0, jpeg(10 + i)), side)) for i in range(4)
    ]
    expected = [event for frame in frames for event in alone.step(frame)]
    said = of_type(messages, "narration")
    assert [(event["start"], event["text"]) for event in said] == [(e.time, e.text) for e in expected]
    assert [event["sequence"] for event in said] == [10, 11, 12, 13]
    assert all(event["start"] <= event["end"] <= 1.5 for event in said)
    assert client.code == 1000
    assert messages[-1]["type"] == "session.ended" and messages[-1]["reason"] == "client"
    figures = messages[-1]["figures"]
    assert (figures["frames_read"], figures["narrations"], figures["seconds"]) == (4, 4, 1.5)


def test_deltas_make_up_the_text(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "MAX_REPLY_TOKENS", 30)
    with server.start(**SPEAKS) as client:
        client.send(0, 0.0)
        client.say("question", id="why", text="Why?")
        messages = client.end()
    for kind, id in (("narration", "n0"), ("answer", "why")):
        deltas = [message["text"] for message in of_type(messages, f"{kind}.delta")]
        (whole,) = of_type(messages, kind)
        assert whole["id"] == id
        assert len(deltas) > 1
        assert whole["text"].startswith("".join(deltas))


def test_a_question_is_answered_after_the_frames_before_it(server: Running) -> None:
    with server.start(**SILENT) as client:
        for index in range(3):
            client.send(index, index / 2)
        client.say("question", id="q<1>", text="<b>What</b> & why?")
        client.send(3, 1.5)
        answer = client.hear("answer")
        assert (answer["id"], answer["question"]) == ("q<1>", "<b>What</b> & why?")
        assert (answer["sequence"], answer["start"]) == (2, 1.0)
        client.end()
    assert not of_type(client.heard, "error", "narration")


def test_a_question_before_any_frame_is_answered(server: Running) -> None:
    with server.start() as client:
        client.say("question", id="1", text="Anything?")
        assert "sequence" not in client.hear("answer")


def test_event_ids_grow(server: Running) -> None:
    with server.start(**SPEAKS) as client:
        client.send(0, 0)
        client.send(1, 0.5)
        client.say("question", id="1", text="What?")
        ids = [message["event_id"] for message in client.end()]
    assert ids[0] == 0
    assert all(one < other for one, other in itertools.pairwise(ids))


def test_only_wanted_events_come_and_the_export_has_all(server: Running) -> None:
    with server.start(events=["answer"], **SPEAKS) as client:
        client.send(0, 0)
        client.say("question", id="1", text="What?")
        types = {message["type"] for message in client.end()}
    assert types == {"session.started", "frame.ack", "answer", "session.ended"}
    assert len(server.sessions.all()[0].outbox.kept()) == 3


def test_frames_between_ticks_are_skipped_and_an_update_changes_that(server: Running) -> None:
    with server.start(threshold=0.0, fps=2) as client:
        for index in range(4):
            client.send(index, index / 10)
        client.say("session.update", fps=10)
        client.send(4, 0.4)
        client.send(5, 0.5)
        figures = client.end()[-1]["figures"]
    assert (figures["frames_read"], figures["frames_skipped"]) == (3, 3)


def test_an_update_changes_the_threshold(server: Running) -> None:
    with server.start(**SILENT) as client:
        client.send(0, 0)
        client.hear("frame.ack")
        client.say("session.update", threshold=1.0)
        client.send(1, 1)
        client.hear("frame.ack")
        client.say("session.update", threshold=0.0, events=["notice"])
        client.send(2, 2)
        client.end()
    assert [event["sequence"] for event in of_type(client.heard, "narration")] == [1]


def test_a_reset_begins_a_new_clock_and_forgets(server: Running) -> None:
    with server.start(**SPEAKS) as client:
        client.send(0, 1000)
        client.send(1, 1001)
        client.hear("narration", sequence=1)
        client.say("session.reset")
        client.hear("notice", code="session.reset")
        client.send(2, 5)
        assert client.hear("narration")["start"] == 0.0
    with server.start(**SPEAKS) as other:
        other.send(2, 5)
        assert other.hear("narration")["text"] == of_type(client.heard, "narration")[-1]["text"]


def test_a_question_may_be_asked_again_behind_a_reset(server: Running) -> None:
    with server.start(**SPEAKS) as client:
        client.say("question", id="1", text="What?")
        client.say("session.reset")
        client.say("question", id="1", text="And now?")
        client.hear("answer", id="1", question="And now?")
        client.end()


@pytest.mark.parametrize("format", FrameFormat)
def test_every_format_is_read(server: Running, format: FrameFormat) -> None:
    with server.start(**SILENT) as client:
        client.socket.send(EncodedFrame(format, 0, 0.0, encoded(picture(), format)).pack())
        assert client.hear("frame.ack")["read"] == 1


def test_two_clients_do_not_mix(server: Running) -> None:
    def watch(seed: int, said: dict[int, list[str]]) -> None:
        with server.start(**SPEAKS) as client:
            for index in range(6):
                client.send(index, index / 2, jpeg(100 * seed + index))
                client.hear("frame.ack")
            client.say("question", id="1", text=f"{seed}?")
            client.end()
        said[seed] = [event["text"] for event in of_type(client.heard, "narration", "answer")]

    alone: dict[int, list[str]] = {}
    for seed in (1, 2):
        watch(seed, alone)
    together: dict[int, list[str]] = {}
    threads = [threading.Thread(target=watch, args=(seed, together)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone
    assert len(alone[1]) == 7


def test_a_system_prompt_changes_what_is_said(server: Running) -> None:
    def said(**settings: object) -> str:
        with server.start(**SPEAKS, **settings) as client:
            client.send(0, 0)
            return client.hear("narration")["text"]

    assert said() == said()
    assert said(prompt="Be brief.") != said()


def test_a_full_context_is_told(model: VideoLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.config, "context_tokens", 300)
    with running(model) as server, server.start(**SPEAKS) as client:
        for index in range(30):
            client.send(index, index)
            client.hear("frame.ack")
        client.end()
    notices = of_type(client.heard, "notice")
    assert {notice["code"] for notice in notices} == {"context.full"}
    assert "forgotten" in notices[0]["text"]


# Flow control


def test_credits_come_back_one_a_frame(server: Running) -> None:
    with server.start(**SILENT) as client:
        credits = client.started["credits"]
        for index in range(40):
            while credits == 0:
                credits += client.hear("frame.ack")["credits"]
            client.send(index, index / 2)
            credits -= 1
        figures = client.end()[-1]["figures"]
        credits += sum(ack["credits"] for ack in of_type(client.heard, "frame.ack"))
    assert figures["frames_read"] == 40 and figures["frames_dropped"] == 0


def test_who_sends_too_fast_loses_its_own_oldest_frames_and_is_told(server: Running) -> None:
    with server.start(**SPEAKS) as other, server.start(**SPEAKS) as client:
        for index in range(60):
            client.send(index, index)
        other.send(0, 0)
        other.end()
        client.end()
    assert other.heard[-1]["figures"]["frames_dropped"] == 0
    figures = client.heard[-1]["figures"]
    acks = of_type(client.heard, "frame.ack")
    assert figures["frames_dropped"] > 0
    assert figures["frames_read"] + figures["frames_dropped"] == 60
    assert sum(ack["credits"] for ack in acks) == 60
    assert sum(ack.get("dropped", 0) for ack in acks) == figures["frames_dropped"]
    assert of_type(client.heard, "narration")[-1]["sequence"] == 59
    notices = of_type(client.heard, "notice")
    assert {notice["code"] for notice in notices} == {"frames.dropped"}
    assert sum(notice["count"] for notice in notices) == figures["frames_dropped"]


def test_many_questions_at_once_are_refused_by_id(server: Running) -> None:
    with server.start() as client:
        for index in range(30):
            client.say("question", id=str(index), text="What?")
        client.end()
    refused = {error["id"] for error in of_type(client.heard, "error")}
    assert {error["code"] for error in of_type(client.heard, "error")} == {"question.too_many"}
    answered = {answer["id"] for answer in of_type(client.heard, "answer")}
    assert refused | answered == {str(index) for index in range(30)} and not refused & answered


def test_a_slow_reader_is_bounded_and_comes_back(model: VideoLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "MOST_LASTING", 20)
    monkeypatch.setattr(serving, "PATIENCE_SECONDS", 1.0)
    with running(model) as server:
        client = server.start(**SPEAKS)
        (live,) = server.sessions.all()
        # As if the network took nothing: the sender waits from here on.
        (protocol,) = server.server.server_state.connections
        protocol.loop.call_soon_threadsafe(protocol.pause_writing)
        for index in range(100):
            client.send(index, index)
            until(lambda index=index: live.outbox.totals.credits > index)
            assert len(live.outbox._unsent) <= outbox.MOST_LASTING + outbox.MOST_PASSING
            if server.sessions.state(live) == "parked":
                break
        until(lambda: server.sessions.state(live) == "parked")
        with pytest.raises(ConnectionClosed):
            while True:
                client.receive()
        with server.connect() as again:
            again.say(
                "session.start",
                resume_token=client.started["resume_token"],
                last_event_id=max(message["event_id"] for message in client.heard),
            )
            again.end()
        said = of_type(client.heard + again.heard, "narration")
        read = live.figures().frames_read
        assert [event["sequence"] for event in said] == list(range(read))


def test_a_socket_that_nobody_reads_is_cut_off(model: VideoLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "PATIENCE_SECONDS", 0.5)
    with running(model) as server, server.start(**SILENT) as other, socket.socket() as narrow:
        narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        narrow.connect(("127.0.0.1", server.port))
        with server.connect(sock=narrow, max_queue=1) as deaf:
            deaf.say("session.start")
            live = server.sessions.get(deaf.hear("session.started")["session_id"])
            most = 0
            with suppress(ConnectionClosed):
                for _ in range(400_000):  # errors come back until the way is full
                    deaf.socket.send(b"VF")
                    most = max(most, len(live.outbox._unsent))
            until(lambda: server.sessions.state(live) == "parked")
        assert most <= outbox.MOST_PASSING
        other.send(0, 0)
        assert other.hear("frame.ack")["read"] == 1
        other.end()


# Resuming


def test_a_resumed_session_goes_on_and_gives_what_was_missed_once_in_order(server: Running) -> None:
    first = server.start(**SPEAKS)
    for index in range(3):
        first.send(index, index)
        first.hear("narration", sequence=index)
    (live,) = server.sessions.all()
    first.send(3, 3)
    first.send(4, 4)
    first.say("question", id="late", text="What?")
    first.socket.socket.close()  # no closing handshake
    until(lambda: len(live.outbox.kept()) == 6)
    with server.connect() as second:
        last = max(message["event_id"] for message in first.heard)
        second.say("session.start", resume_token=first.started["resume_token"], last_event_id=last)
        started = second.hear("session.started")
        assert (started["resumed"], started["last_sequence"]) == (True, 4)
        assert started["session_id"] == first.started["session_id"]
        second.say("question", id="late", text="What?")  # has come already
        second.send(5, 5)
        second.end()
    lasting = of_type(first.heard + second.heard, "narration", "answer", "session.ended")
    kinds = [(message["type"], message.get("sequence")) for message in lasting]
    assert kinds == [
        *[("narration", index) for index in range(5)],
        ("answer", 4),
        ("narration", 5),
        ("session.ended", None),
    ]
    ids = [message["event_id"] for message in lasting]
    assert ids == sorted(set(ids))


def test_the_context_survives_a_break(server: Running) -> None:
    def watch(breaks: bool) -> list[str]:
        client = server.start(**SPEAKS)
        said = []
        for index in range(4):
            client.send(index, index)
            said.append(client.hear("narration")["text"])
            if breaks:
                client.socket.close()
                token, last = client.started["resume_token"], client.heard[-1]["event_id"]
                client = server.connect()
                client.say("session.start", resume_token=token, last_event_id=last)
                client.started = client.hear("session.started")
        client.end()
        return said

    assert watch(breaks=True) == watch(breaks=False)


def test_a_session_resumed_elsewhere_ends_the_older_connection(server: Running) -> None:
    older = server.start(**SPEAKS)
    with server.connect() as newer:
        newer.say("session.start", resume_token=older.started["resume_token"])
        newer.hear("session.started")
        assert of_type(older.rest(), "error")[0]["code"] == "session.taken"
        assert older.code == 4409
        newer.send(0, 0)
        newer.hear("narration")


def test_after_the_time_of_grace_nothing_is_left(model: VideoLLM) -> None:
    with running(model, grace_seconds=0.2, max_sessions=1) as server:
        client = server.start(**SPEAKS)
        client.send(0, 0)
        client.socket.close()
        until(lambda: not server.sessions.all())
        until(lambda: len(server.sessions.engine.engine._free) == 1)
        assert not server.sessions.engine._seats
        with server.connect() as late:
            late.say("session.start", resume_token=client.started["resume_token"])
            assert late.rest()[-1]["code"] == "session.unknown"
            assert late.code == 4404
        with server.start(**SPEAKS) as fresh:
            fresh.send(0, 0)
            fresh.hear("narration")


def test_an_ended_session_tells_its_end_to_who_missed_it(server: Running) -> None:
    client = server.start(**SPEAKS)
    client.send(0, 0)
    client.say("session.end")
    client.socket.socket.close()
    (live,) = server.sessions.all()
    until(lambda: live.over)
    with server.connect() as again:
        again.say("session.start", resume_token=client.started["resume_token"])
        assert [message["type"] for message in again.rest()] == [
            "session.started",
            "narration",
            "session.ended",
        ]
        assert again.code == 1000


def test_when_all_slots_are_taken_others_are_refused(model: VideoLLM) -> None:
    with running(model, max_sessions=1) as server:
        with server.start() as one:
            with server.connect() as two:
                two.say("session.start")
                assert two.rest()[-1]["code"] == "server.full"
                assert two.code == 1013
            one.end()
        server.start().end()


# Ends


def test_a_killed_client_leaves_the_others_alone(server: Running) -> None:
    code = (
        "import sys; sys.path[:0] = sys.argv[2:]; from servers import Client;"
        "client = Client(sys.argv[1]); client.say('session.start', threshold=1.0);"
        "client.send(0, 0); print(client.hear('narration')['type'], flush=True); sys.stdin.read()"
    )
    folders = [os.path.dirname(__file__), os.getcwd()]  # noqa: PTH109, PTH120
    command = [sys.executable, "-c", code, f"{server.address}/v1/stream", *folders]
    with server.start(**SPEAKS) as other:
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as killed:
            assert killed.stdout and killed.stdout.readline() == b"narration\n"
            killed.kill()
        until(lambda: [server.sessions.state(live) for live in server.sessions.all()].count("parked") == 1)
        other.send(0, 0)
        other.hear("narration")


def test_sigterm_drains(tmp_path_factory: pytest.TempPathFactory, tiny: VideoLLM) -> None:
    folder = tmp_path_factory.mktemp("model")
    tiny.save_pretrained(folder)
    command = [sys.executable, "-m", "videollm.cli", "serve", "--port", "0", "--model", str(folder)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr
            address = re.search(r"ws://\S+", process.stderr.readline())
            assert address
            with Client(address[0]) as client:
                client.say("session.start", **SPEAKS)
                for index in range(FRAMES):
                    client.send(index, index)
                client.hear("narration")
                process.send_signal(signal.SIGTERM)
                client.rest()
            process.wait(20)
        finally:
            process.kill()
    ended = client.heard[-1]
    assert (ended["type"], ended["reason"]) == ("session.ended", "server.shutdown")
    assert client.code == 1001
    assert ended["figures"]["frames_read"] == FRAMES
    assert len(of_type(client.heard, "narration")) == FRAMES
    assert process.returncode == 128 + signal.SIGTERM


def test_fragments_and_pings_are_websockets_business(server: Running) -> None:
    with server.start(**SPEAKS) as client:
        frame = EncodedFrame(FrameFormat.JPEG, 0, 0.0, jpeg()).pack()
        client.socket.send([frame[:5], frame[5:20], frame[20:]])
        client.hear("narration")
        assert client.socket.ping().wait(5)
        client.socket.send(['{"type": "ques', 'tion", "id": "1", "text": "What?"}'])
        client.hear("answer", id="1")


def test_who_says_nothing_is_shown_out(model: VideoLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "START_SECONDS", 0.2)
    with running(model) as server, server.connect() as client:
        assert client.rest()[-1]["code"] == "start.timeout"
        assert client.code == 4408


def test_a_step_that_fails_ends_its_stream_and_no_other(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    healthy, failing = server.start(**SPEAKS), server.start(**SPEAKS)

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(server.sessions.engine.engine, "step", fail)
        failing.send(0, 0)
        messages = failing.rest()
    assert of_type(messages, "error")[0]["code"] == "server.error"
    assert messages[-1]["reason"] == "server.error" and failing.code == 1011
    healthy.send(0, 0)
    healthy.hear("narration")
    healthy.end()


def test_a_question_to_the_engine_that_nobody_waits_for_does_no_harm(server: Running) -> None:
    with server.start(**SPEAKS) as client:
        (live,) = server.sessions.all()
        thread = server.sessions.engine
        for _ in range(100):
            thread.cache_figures(live).cancel()
        client.send(0, 0.0)
        client.hear("narration")
        figures = thread.cache_figures(live).result(20)
        assert figures is not None and figures.tokens > 10
