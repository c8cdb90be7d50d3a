"""The clients that come with the server: in Python, in JavaScript, and on the command line."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import terse_model
from servers import SPEAKS, Running, jpeg, running, until

from stream.sources import open_source
from ui.client import RefusedError, connect
from videollm import VideoLLM
from videollm.checkpoints import assets_folder
from videollm.cli import run


@pytest.fixture(scope="module")
def model() -> Iterator[VideoLLM]:
    with terse_model() as model:
        yield model


@pytest.fixture
def server(model: VideoLLM) -> Iterator[Running]:
    with running(model, token="secret", grace_seconds=10) as running_server:
        yield running_server


def cut_all(server: Running) -> None:
    """As if the network broke: sockets are gone without a word."""
    for protocol in list(server.server.server_state.connections):
        protocol.loop.call_soon_threadsafe(protocol.transport.abort)


def test_frames_go_out_and_events_come_in(server: Running) -> None:
    async def main() -> None:
        async with connect(server.address, token="secret", **SPEAKS) as stream:
            for index in range(30):  # more than there are credits
                assert await stream.send(jpeg(index), index) == index
            answer = await stream.ask("What?")
            figures = await stream.end()
            events = [event async for event in stream]
        assert figures["frames_read"] == 30 and figures["frames_dropped"] == 0
        assert [event["text"] for event in events if event["type"] == "answer"] == [answer]
        said = [event["sequence"] for event in events if event["type"] == "narration"]
        assert said == list(range(30))

    asyncio.run(main())


def test_a_live_picture_without_room_is_left_out(server: Running) -> None:
    async def main() -> None:
        async with connect(server.address, token="secret", **SPEAKS) as stream:
            sent = [await stream.offer(jpeg(), index) for index in range(40)]
            assert None in sent
            figures = await stream.end()
            assert figures["frames_read"] == 40 - sent.count(None)

    asyncio.run(main())


def test_after_a_break_it_goes_on_and_nothing_said_is_lost(server: Running) -> None:
    async def main() -> None:
        async with connect(server.address, token="secret", **SPEAKS) as stream:
            first = stream.session_id
            for index in range(20):
                await stream.send(jpeg(index), index)
                if index % 6 == 5:
                    question = asyncio.create_task(stream.ask(f"{index}?"))
                    await asyncio.sleep(0)
                    cut_all(server)
                    assert await question
            figures = await stream.end()
            assert stream.session_id == first
            events = [event async for event in stream]
        said = [event["sequence"] for event in events if event["type"] == "narration"]
        assert said == sorted(set(said)) and len(said) == figures["narrations"] == figures["frames_read"]
        assert sum(event["type"] == "answer" for event in events) == figures["answers"] == 3
        assert sum(event["type"] == "session.started" for event in events) >= 2

    asyncio.run(main())


def test_a_reset_and_an_update_wait_for_the_connection(server: Running) -> None:
    async def main() -> None:
        async with connect(server.address, token="secret", threshold=0.0, fps=60) as stream:
            await stream.send(jpeg(), 100)
            cut_all(server)
            await asyncio.sleep(0.05)
            await stream.reset()
            await stream.update(threshold=1.0)
            await stream.send(jpeg(), 5)
            await stream.end()
            said = [event async for event in stream if event["type"] == "narration"]
            assert [event["start"] for event in said] == [0.0]

    asyncio.run(main())


@pytest.mark.parametrize("lost", [False, True])
def test_a_reset_and_an_update_that_were_lost_are_said_again_and_others_are_not(
    server: Running, lost: bool
) -> None:
    async def main() -> None:
        async with connect(server.address, token="secret", threshold=0.0, fps=60) as stream:
            await stream.send(jpeg(), 100)
            await stream.ask("What?")
            if lost:  # nothing that is sent arrives
                for protocol in list(server.server.server_state.connections):
                    protocol.loop.call_soon_threadsafe(protocol.transport.pause_reading)
                await asyncio.sleep(0.05)
            await stream.update(threshold=0.5)
            await stream.update(threshold=1.0)
            await stream.reset()
            if not lost:
                await stream.send(jpeg(), 4)
                await stream.ask("What?")
            cut_all(server)
            await asyncio.sleep(0.05)
            await stream.send(jpeg(), 5)
            await stream.end()
            events = [event async for event in stream]
        said = [event["start"] for event in events if event["type"] == "narration"]
        assert said == ([0.0] if lost else [0.0, 1.0])
        assert sum(event.get("code") == "session.reset" for event in events) == 1

    asyncio.run(main())


def test_a_reset_gives_up_the_questions_before_it_and_no_other(server: Running) -> None:
    async def main() -> None:
        async with connect(server.address, token="secret", **SPEAKS) as stream:
            cut_all(server)
            await asyncio.sleep(0.05)
            before = asyncio.create_task(stream.ask("Before?"))
            await asyncio.sleep(0)
            await stream.reset()
            after = await stream.ask("After?")
            with pytest.raises(RefusedError, match="the stream was reset") as error:
                await before
            assert error.value.code == "session.reset"
            await stream.end()
            answers = [event async for event in stream if event["type"] == "answer"]
            assert [(answer["question"], answer["text"]) for answer in answers] == [("After?", after)]

    asyncio.run(main())


def test_where_the_session_is_gone_a_new_one_begins(model: VideoLLM) -> None:
    async def main(server: Running) -> None:
        async with connect(server.address, **SPEAKS) as stream:
            first = stream.session_id
            cut_all(server)
            await stream.send(jpeg(), 0)
            assert await stream.ask("What?")
            assert stream.session_id != first
            await stream.end()
            events = [event async for event in stream]
        assert [event.get("resumed") for event in events if event["type"] == "session.started"] == [
            None,
            None,
        ]

    with running(model, grace_seconds=0.0) as server:
        asyncio.run(main(server))


def test_what_will_never_be_is_an_error_at_once(server: Running) -> None:
    async def refused() -> None:
        async with connect(server.address, token="wrong"):
            pass

    async def nobody() -> None:
        async with connect("ws://127.0.0.1:9"):
            pass

    async def empty() -> None:
        async with connect(server.address, token="secret") as stream:
            await stream.ask("  ")

    with pytest.raises(RefusedError, match="token is wrong") as error:
        asyncio.run(refused())
    assert error.value.code == "auth.wrong"
    with pytest.raises(OSError):
        asyncio.run(nobody())
    with pytest.raises(RefusedError, match="the question is empty"):
        asyncio.run(empty())


def test_leaving_ends_the_session(server: Running) -> None:
    async def main() -> None:
        async with connect(server.address, token="secret"):
            pass

    asyncio.run(main())
    until(lambda: not server.sessions.engine._seats)


# JavaScript

SCRIPT = """
import { readFileSync } from "node:fs";
const { VideoLLM } = await import(process.argv[2]);
const stream = new VideoLLM({ url: process.argv[3], token: process.argv[4], threshold: 1, fps: 60 });
const heard = [];
for (const type of ["narration", "answer", "disconnected", "connected", "failed"]) {
  stream.addEventListener(type, ({ detail }) => heard.push([type, detail?.sequence ?? detail?.code ?? null]));
}
const picture = new Blob([readFileSync(process.argv[5])], { type: "image/jpeg" });
try {
  await stream.start();
  for (let index = 0; index < 12; index++) {
    while (!stream.ready) await new Promise((resolve) => setTimeout(resolve, 10));
    await stream.send(picture, index);
    if (index === 5) {
      console.log(JSON.stringify("cut"));
      while (stream.connected) await new Promise((resolve) => setTimeout(resolve, 10));
    }
  }
  const answer = await stream.ask("<b>What?</b>");
  console.log(JSON.stringify({ question: answer.question, figures: await stream.end(), heard }));
} catch (error) {
  console.log(JSON.stringify({ code: error.code, heard }));
}
process.exit(0);
"""


CHANGING = """
import { readFileSync } from "node:fs";
const { VideoLLM } = await import(process.argv[2]);
const stream = new VideoLLM({ url: process.argv[3], token: process.argv[4], threshold: 0, fps: 60 });
const heard = { narration: [], answer: [], notice: [] };
for (const type of Object.keys(heard)) {
  stream.addEventListener(type, ({ detail }) => heard[type].push(detail));
}
const picture = new Blob([readFileSync(process.argv[5])], { type: "image/jpeg" });
const until = async (condition) => {
  while (!condition()) await new Promise((resolve) => setTimeout(resolve, 5));
};
const cut = async () => {
  console.log(JSON.stringify("cut"));
  await until(() => !stream.connected);
};
await stream.start();
await stream.send(picture, 100);
await stream.ask("What?");
await cut();
stream.update({ threshold: 0.5 });
stream.update({ threshold: 1 });
const before = stream.ask("Before?").catch(({ code }) => code);
stream.reset();
const after = stream.ask("After?");
await until(() => stream.ready);
await stream.send(picture, 4);
await until(() => heard.narration.length === 1);
await cut();
await until(() => stream.ready);
await stream.send(picture, 5);
const [refusal, answer] = await Promise.all([before, after]);
await stream.end();
console.log(JSON.stringify({ refusal, answer, ...heard }));
process.exit(0);
"""


def node(server: Running, folder: Path, token: str, script: str = SCRIPT) -> subprocess.Popen[str]:
    program = shutil.which("node")
    if program is None:
        pytest.skip("node is not installed")
    (folder / "main.mjs").write_text(script)
    (folder / "picture.jpg").write_bytes(jpeg())
    client = Path(__file__).parents[2] / "ui" / "static" / "videollm.js"
    (folder / "videollm.mjs").write_text(client.read_text())
    command = [program, "--experimental-websocket", "--no-warnings", "main.mjs", "./videollm.mjs"]
    command += [f"{server.address}/v1/stream", token, "picture.jpg"]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)


def test_the_javascript_client_does_the_same(server: Running, tmp_path: Path) -> None:
    with node(server, tmp_path, "secret") as process:
        assert process.stdout
        assert process.stdout.readline() == '"cut"\n'
        cut_all(server)
        done = json.loads(process.stdout.readline())
    assert done["question"] == "<b>What?</b>"
    read = done["figures"]["frames_read"]
    said = [sequence for type, sequence in done["heard"] if type == "narration"]
    assert len(said) == done["figures"]["narrations"] == read
    assert said == sorted(set(said))
    assert [type for type, _ in done["heard"] if type in ("connected", "disconnected")][:3] == [
        "connected",
        "disconnected",
        "connected",
    ]


def test_what_the_javascript_client_changes_without_a_connection_is_said_later(
    server: Running, tmp_path: Path
) -> None:
    with node(server, tmp_path, "secret", CHANGING) as process:
        assert process.stdout
        for _ in range(2):
            assert process.stdout.readline() == '"cut"\n'
            cut_all(server)
        done = json.loads(process.stdout.readline())
    assert [event["start"] for event in done["narration"]] == [0, 1]  # the second break resets nothing
    assert [event["code"] for event in done["notice"]] == ["session.reset"]
    assert done["refusal"] == "session.reset"
    assert [event["question"] for event in done["answer"]] == ["What?", "After?"]


def test_the_javascript_client_tells_why_it_is_refused(server: Running, tmp_path: Path) -> None:
    with node(server, tmp_path, "wrong") as process:
        done, _ = process.communicate(timeout=30)
    assert json.loads(done)["code"] == "auth.wrong"


def test_the_python_client_is_one_file_that_can_be_copied(tmp_path: Path) -> None:
    source = Path(__file__).parents[2] / "ui" / "client.py"
    (tmp_path / "client.py").write_text(source.read_text())
    code = "import sys, client; print({'ui', 'stream', 'videollm', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


# The command line


def test_narrate_lets_a_server_watch(server: Running, capsys: pytest.CaptureFixture[str]) -> None:
    sample = str(assets_folder() / "sample.mp4")
    options = ["--fps", "1", "--threshold", "1", "--format", "jsonl", "--server", server.address]
    assert run(["narrate", sample, *options, "--token", "secret"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    with open_source(sample, 1) as source:
        assert [event["time"] for event in events] == [frame.time for frame in source]
    assert {event["kind"] for event in events} == {"narration"}


def test_narrate_tells_in_one_line_why_a_server_does_not(
    server: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    sample = str(assets_folder() / "sample.mp4")
    assert run(["narrate", sample, "--server", server.address, "--token", "wrong"]) == 1
    assert capsys.readouterr().err == f"videollm: {server.address} refuses: the token is wrong\n"
    assert run(["narrate", sample, "--server", "ws://127.0.0.1:9"]) == 1
    error = capsys.readouterr().err
    assert "can't be reached" in error and len(error.splitlines()) == 1
