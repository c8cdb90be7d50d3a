"""The documents for machines say the truth, and the HTTP API does what they say."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from conftest import small_model
from servers import Running, running
from starlette.routing import Route

from stream import session
from stream.export import FORMATS
from ui import protocol
from ui.documents import asyncapi, openapi


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "MAX_REPLY_TOKENS", 6)
        with running(small_model(), token="secret", max_sessions=4) as running_server:
            yield running_server


def get(server: Running, path: str) -> bytes:
    request = urllib.request.Request(server.http + path, headers={"Authorization": "Bearer secret"})
    with urllib.request.urlopen(request, timeout=20) as response:
        return response.read()


def test_every_route_is_in_the_document(server: Running) -> None:
    paths = {route.path for route in server.app.routes if isinstance(route, Route)}
    assert paths - {"/", "/openapi.json", "/asyncapi.json"} == set(openapi("tiny")["paths"])
    assert json.loads(get(server, "/openapi.json")) == openapi("tiny")


def test_every_message_is_as_the_document_says(server: Running) -> None:
    document = json.loads(get(server, "/asyncapi.json"))
    assert document == json.loads(json.dumps(asyncapi()))
    with server.start(token="secret", threshold=1.0, fps=60) as client:
        for index in range(40):
            client.send(index, index)
        client.say("question", id="1", text="What?")
        client.say("question", id="2", text=" ")
        client.socket.send(b"VF")
        client.end()
    heard = {message["type"] for message in client.heard}
    described = {
        reference["$ref"].rsplit("/", 1)[1] for reference in document["operations"]["say"]["messages"]
    }
    assert heard - described == set() and described - heard <= {"narration.delta", "answer.delta"}
    for message in client.heard:
        payload = document["components"]["messages"][message["type"]]["payload"]
        schema = payload | {"components": document["components"]}
        jsonschema_rs.validate(schema, message)


def test_the_page_of_the_protocol_names_everything() -> None:
    page = (Path(protocol.__file__).parent / "PROTOCOL.md").read_text()
    names = [*protocol.ErrorCode, *protocol.NoticeCode, *protocol.EndReason, *protocol.KINDS]
    names += [str(name) for name in asyncapi()["components"]["messages"] if name != "frame"]
    assert [name for name in names if f"`{name}`" not in page] == []
    codes = {value for name, value in vars(protocol.CloseCode).items() if name.isupper()}
    assert {code for code in codes if not re.search(rf"\b{code}\b", page)} == set()


@pytest.mark.parametrize("format", FORMATS)
def test_what_was_said_can_be_had_in_every_format(server: Running, format: str) -> None:
    with server.start(token="secret", threshold=1.0) as client:
        client.send(0, 0)
        client.say("question", id="1", text="<b>What?</b>")
        client.end()
    path = f"/v1/sessions/{client.started['session_id']}"
    exported = get(server, f"{path}/events?format={format}").decode()
    assert "What?" in exported
    if format == "jsonl":
        kinds = [json.loads(line)["kind"] for line in exported.splitlines()]
        assert kinds == ["narration", "question", "answer"]
    info: dict[str, Any] = json.loads(get(server, path))
    assert info["state"] == "ended" and info["figures"]["narrations"] == 1


def test_the_metrics_count(server: Running) -> None:
    with server.start(token="secret", threshold=1.0) as client:
        client.send(0, 0)
        client.end()
    text = get(server, "/metrics").decode()
    for name in ('videollm_frames_total{outcome="read"}', 'videollm_events_total{kind="narration"}'):
        count = re.search(rf"^{re.escape(name)} (\d+)", text, re.MULTILINE)
        assert count and int(count[1]) > 0


@pytest.mark.slow
def test_the_http_api_keeps_what_the_document_promises(server: Running, tmp_path: Path) -> None:
    with server.start(token="secret") as client:
        client.end()
    done = subprocess.run(
        [
            *(str(Path(sys.executable).parent / "schemathesis"), "run", f"{server.http}/openapi.json"),
            *("--header", "Authorization: Bearer secret", "--max-examples", "30", "--seed", "0"),
            # A well-formed request may still hold no question, or a picture that is none.
            *("--generation-database", "none", "--exclude-checks", "positive_data_acceptance"),
        ],
        cwd=tmp_path,  # it leaves a folder
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
