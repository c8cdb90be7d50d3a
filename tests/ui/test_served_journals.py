"""Sessions of a server keep journals: nothing said is lost, and what has left the context is recalled."""

from __future__ import annotations

import asyncio
import json
import re
import resource
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import terse_model
from servers import SILENT, SPEAKS, Client, Running, of_type, running, until

from stream import session
from stream.frames import Event
from stream.journal import LEAST_SIZE, Journal, JournalError, JournalReader
from ui.client import connect
from ui.settings import Settings, SettingsError
from videollm import VideoLLM
from videollm.cli import run


@pytest.fixture
def model() -> Iterator[VideoLLM]:
    with terse_model() as model:
        yield model


@pytest.fixture
def server(model: VideoLLM, tmp_path: Path) -> Iterator[Running]:
    with running(model, journal=tmp_path, grace_seconds=5) as running_server:
        yield running_server


def kept(path: Path) -> list[Event]:
    with JournalReader(path) as reader:
        return reader.events()


def heard(messages: list[dict[str, Any]]) -> list[Event]:
    """What a client was told, as a journal keeps it."""
    events = []
    for message in of_type(messages, "narration", "answer"):
        if message["type"] == "answer":
            events.append(Event(message["start"], "question", message["question"]))
        events.append(Event(message["start"], message["type"], message["text"]))
    return events


def exported(address: str, id: str) -> list[Event]:
    with urllib.request.urlopen(f"{address}/v1/sessions/{id}/events", timeout=20) as response:
        lines = response.read().decode().splitlines()
    return [Event(line["time"], line["kind"], line["text"]) for line in map(json.loads, lines)]


def test_a_session_keeps_what_it_says_and_goes_on_after_a_break(server: Running, tmp_path: Path) -> None:
    first = server.start(**SPEAKS)
    path = tmp_path / f"{first.started['session_id']}.db"
    assert not path.exists()  # nothing was seen yet
    for index in range(3):
        first.send(index, 100 + index)
        first.hear("narration", sequence=index)
        assert kept(path) == heard(first.heard)  # before it is told
    first.socket.socket.close()
    with server.connect() as second:
        second.say("session.start", resume_token=first.started["resume_token"], last_event_id=10**6)
        second.hear("session.started")
        second.send(3, 103)
        second.say("question", id="1", text="What?")
        second.end()
    until(lambda: {file.name for file in tmp_path.iterdir()} == {path.name, f"{path.name}-lock"})
    said = heard(first.heard + second.heard)
    assert [event.time for event in said] == [0, 1, 2, 3, 3, 3]
    assert kept(path) == said
    with JournalReader(path) as reader:
        assert [frame.time for at in range(4) if (frame := reader.frame_at(at))] == [0, 1, 2, 3]


def test_what_has_left_the_context_is_recalled(
    model: VideoLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.config, "context_tokens", 300)

    def ask(server: Running) -> dict[str, Any]:
        with server.start(**SPEAKS) as client, server.start(**SPEAKS) as other:
            for index in range(30):
                for stream in (client, other):
                    stream.send(index, index)
                    stream.hear("frame.ack")
            other.send(30, 30)  # steps beside the answer
            client.say("question", id="1", text="What came first?")
            client.hear("answer")
            client.end()
            other.end()
            assert of_type(client.heard, "notice")[0]["code"] == "context.full"
            assert len(of_type(other.heard, "narration")) == 31
        return client.heard

    with running(model, journal=tmp_path) as server:
        messages = ask(server)
        (answer,) = of_type(messages, "answer")
        first = of_type(messages, "narration")[0]
        assert answer["moments"] == [{"time": first["start"], "text": first["text"]}]
        id = messages[0]["session_id"]
        assert [event.text for event in exported(server.http, id)][:2] == [
            event["text"] for event in of_type(messages, "narration")[:2]
        ]
    with running(model) as server:
        (answer,) = of_type(ask(server), "answer")
        assert "moments" not in answer


def test_a_reset_begins_another_journal_which_knows_nothing_of_before(
    server: Running, tmp_path: Path
) -> None:
    with server.start(**SPEAKS) as client:
        client.send(0, 50)
        client.hear("narration")
        client.say("session.reset")
        client.hear("notice")
        client.send(1, 7)
        client.hear("narration", sequence=1)
        client.say("question", id="1", text="What came first?")
        client.end()
    id = client.started["session_id"]
    one, two = heard(client.heard)[:1], heard(client.heard)[1:]
    assert kept(tmp_path / f"{id}.db") == one
    assert kept(tmp_path / f"{id}-2.db") == two
    assert {event.time for event in two} == {0.0}


def test_dropped_frames_are_in_the_journal(server: Running, tmp_path: Path) -> None:
    with server.start(**SPEAKS) as client:
        for index in range(60):
            client.send(index, index)
        client.end()
    dropped = [notice["text"] for notice in of_type(client.heard, "notice")]
    said = kept(tmp_path / f"{client.started['session_id']}.db")
    assert dropped and [event.text for event in said if event.kind == "notice"] == dropped
    assert [event for event in said if event.kind != "notice"] == heard(client.heard)


# Faults


@contextmanager
def served(folder: Path, *options: str | Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server in a process of its own, and its host and port."""
    command = [sys.executable, "-m", "videollm.cli", "serve", "--port", "0", "--model", folder, *options]
    with subprocess.Popen([*map(str, command)], stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr
            address = re.search(r"ws://(\S+?)/", process.stderr.readline())
            assert address
            yield process, address[1]
        finally:
            process.kill()


def test_a_killed_server_has_lost_nothing_that_it_said(
    tiny: VideoLLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, journals = tmp_path / "model", tmp_path / "journals"
    tiny.save_pretrained(checkpoint)
    messages: list[dict[str, Any]] = []
    read = 0
    with served(checkpoint, "--journal", journals) as (process, address):
        with Client(f"ws://{address}/v1/stream") as client:
            client.say("session.start", **SPEAKS)
            started = client.hear("session.started")
            client.say("question", id="1", text="What?")
            client.hear("answer")
            for index in range(12):
                client.send(index, index)
                client.hear("frame.ack")
            client.send(12, 12)
            client.send(13, 13)
            client.hear("narration", sequence=12)  # and in the middle of what follows
            process.kill()
            messages = client.rest()
        read = sum(ack.get("read", 0) for ack in of_type(messages, "frame.ack"))
    path = journals / f"{started['session_id']}.db"
    with served(checkpoint, "--journal", journals) as (_, address):
        said = heard(messages)
        assert len(said) >= 14 and read >= 12
        assert exported(f"http://{address}", started["session_id"])[: len(said)] == said
        with Client(f"ws://{address}/v1/stream") as late:
            late.say("session.start", resume_token=started["resume_token"], last_event_id=3)
            assert late.rest()[-1]["code"] == "session.unknown"
            assert late.code == 4404
        with JournalReader(path) as reader:
            assert reader.events()[: len(said)] == said
            assert [frame.time for at in range(read) if (frame := reader.frame_at(at))] == [*range(read)]
        question = ["ask", "--journal", str(path), "--model", str(checkpoint), "What came first?"]
        assert run(question) == 0
        first = next(event for event in said if event.kind == "narration")
        assert f"(at 00:00: {' '.join(first.text.split())}" in capsys.readouterr().out

        async def goes_on() -> None:
            async with connect(f"ws://{address}") as stream:
                assert await stream.ask("What?")

        asyncio.run(goes_on())


@contextmanager
def full_disk(most: int) -> Iterator[None]:
    """Files of this process can't grow past so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_on_a_full_disk_the_stream_goes_on_and_says_so(server: Running, tmp_path: Path) -> None:
    with server.start(**SPEAKS) as client:
        client.send(0, 0)
        client.hear("narration")
        with full_disk(100_000):
            index = 1
            while not of_type(client.heard, "notice"):
                assert index < 200
                client.send(index, index)
                client.hear("narration", sequence=index)
                index += 1
        with full_disk(10_000), server.start(**SPEAKS) as other:
            other.send(0, 0)
            assert other.hear("notice")["code"] == "journal.changed"
            other.hear("narration")
            other.end()
        client.send(index, index)
        client.end()
    notices = of_type(client.heard, "notice")
    assert {notice["code"] for notice in notices} == {"journal.changed"}
    assert "pauses" in notices[0]["text"] and notices[-1]["text"] == "the journal goes on"
    said = kept(tmp_path / f"{client.started['session_id']}.db")
    assert [event for event in said if event.kind != "notice"] == heard(client.heard)
    assert client.heard[-1]["figures"]["narrations"] == index + 1


def test_where_the_server_keeps_its_journals_is_not_told(
    server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(journal: Journal, *_: Any) -> None:
        raise JournalError(f"{journal.path} is damaged")

    monkeypatch.setattr(session, "recall", broken)
    with server.start(**SILENT) as client:
        client.send(0, 0)
        client.say("question", id="1", text="What was in view?")
        client.hear("answer")
        (notice,) = of_type(client.heard, "notice")
        assert notice["text"] == f"{client.started['session_id']}.db is damaged"
        client.end()


def test_a_slow_disk_holds_up_no_other_message(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    record, writing = Journal.record, threading.Event()

    def slow(*arguments: Any) -> list[Event]:
        writing.set()
        time.sleep(2)
        return record(*arguments)

    with server.start(**SPEAKS) as client, monkeypatch.context() as patch:
        patch.setattr(Journal, "record", slow)
        client.send(0, 0)
        assert writing.wait(20)
        began = time.monotonic()
        for _ in range(5):
            assert client.socket.ping().wait(5)
            with urllib.request.urlopen(f"{server.http}/health", timeout=5):
                pass
        assert time.monotonic() - began < 1
        assert not of_type(client.heard, "narration")
        client.hear("narration")


# Who may read, and what is refused


def test_what_is_no_session_is_not_looked_for(server: Running, tmp_path: Path) -> None:
    with Journal(tmp_path.parent / "secret.db") as journal:
        journal.record([Event(0, "narration", "A secret.")])
    for id in ("..%2Fsecret", "%2e%2e%2fsecret", "*", "0" * 16, "%00", "a" * 10_000):
        with pytest.raises(urllib.error.HTTPError) as error:
            exported(server.http, id)
        assert error.value.code == 404


def test_a_journal_that_cannot_be_read_is_an_error(server: Running, tmp_path: Path) -> None:
    (tmp_path / f"{'0' * 16}.db").write_text("no journal")
    with pytest.raises(urllib.error.HTTPError) as error:
        exported(server.http, "0" * 16)
    assert error.value.code == 500
    assert json.loads(error.value.read())["error"]["code"] == "journal.unreadable"


def test_journals_of_before_make_room(model: VideoLLM, tmp_path: Path) -> None:
    limits = {"journal_size": LEAST_SIZE, "journal_total": LEAST_SIZE + 150_000, "max_sessions": 1}
    with running(model, journal=tmp_path, **limits) as server:
        ids = []
        for _ in range(5):
            with server.start(**SPEAKS) as client:
                client.send(0, 0)
                client.end()
            ids.append(client.started["session_id"])
    with pytest.raises(JournalError, match="there is no journal"):
        kept(tmp_path / f"{ids[0]}.db")
    assert len(kept(tmp_path / f"{ids[-1]}.db")) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"journal_size": LEAST_SIZE - 1}, "at least 4000000 bytes"),
        ({"max_sessions": 11}, "lower --journal-size or raise --journal-total"),
        ({"journal": Path("/dev/null/journals")}, "name another folder"),
    ],
)
def test_what_cannot_be_kept_is_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Settings(**{"journal": tmp_path} | settings).check()
