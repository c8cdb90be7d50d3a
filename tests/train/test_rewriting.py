"""A language model that writes the questions, behind a server that speaks OpenAI's protocol."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from train.data.annotations import AnnotatedVideo, Dialogue, Segment, Skipped, Turn
from train.data.dialogues import question_dialogues, read_dialogues
from train.data.rewriting import LONGEST, Endpoint, EndpointError, rewritten
from train.data.shards import Encoding, ShardWriter, VideoFeatures, write_shard
from videollm.cli import run

VIDEO = AnnotatedVideo(
    "kitchen", tuple(Segment(time, f"C does thing {time}", time + 1) for time in range(1, 20, 2)), 30.0
)
OTHER = AnnotatedVideo("other", VIDEO.segments, 30.0)


class Server(ThreadingHTTPServer):
    def __init__(self, replies: Callable[[dict[str, Any]], str | int]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies = replies
        self.asked: list[dict[str, Any]] = []
        self.keys: set[str] = set()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    """`/v1/chat/completions`, as far as a client that doesn't stream sees it."""

    server: Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)
        self.server.keys.add(self.headers["Authorization"])
        reply = self.server.replies(json.loads(body["messages"][-1]["content"]))
        if self.path != "/v1/chat/completions" or isinstance(reply, int):
            self.send(404 if isinstance(reply, str) else reply, {"error": {"message": "out of order"}})
            return
        choice = {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": reply},
        }
        self.send(
            200,
            {
                "id": "chatcmpl-1",
                "object": "chat.completion",
                "created": 1,
                "model": body["model"],
                "choices": [choice],
            },
        )

    def send(self, status: int, message: dict[str, Any]) -> None:
        data = json.dumps(message).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def serving(replies: Callable[[dict[str, Any]], str | int]) -> Iterator[Server]:
    with Server(replies) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def exchanges(*said: tuple[float, str, str]) -> str:
    return json.dumps(
        {
            "exchanges": [
                {"time": time, "question": question, "answer": answer} for time, question, answer in said
            ]
        }
    )


def friendly(request: dict[str, Any]) -> str:
    last = request["events"][-1]
    return exchanges(
        (request["start"] + 1.3, "So what am I up to?", "You have just begun."),
        (last["time"], "And now?", "Done."),
    )


def made() -> list[Dialogue]:
    return question_dialogues([VIDEO, OTHER], 2, 10, 2, seed=1)


def rewrite(server: Server, cache: Path, skipped: Skipped) -> list[Dialogue]:
    return rewritten(made(), Endpoint(server.url, "writer", "secret", cache), 2, skipped)


def test_what_the_model_writes_takes_the_place_of_the_templates(tmp_path: Path) -> None:
    skipped = Skipped()
    with serving(friendly) as server:
        written = rewrite(server, tmp_path, skipped)
    assert not skipped.counts
    assert server.keys == {"Bearer secret"}
    assert {body["model"] for body in server.asked} == {"writer"}
    for body in server.asked:
        form = body["response_format"]["json_schema"]
        assert form["strict"] and form["schema"]["type"] == "object"
        assert form["schema"]["required"] == ["exchanges"]
    for before, after in zip(made(), written, strict=True):
        assert (after.video, after.start, after.end) == (before.video, before.start, before.end)
        first = after.start + 1.0  # 1.3 s is between two frames
        last = [turn for turn in after.turns if turn.role == "assistant"][-2]
        position = after.turns.index(Turn(first, "user", "So what am I up to?"))
        assert after.turns[position + 1] == Turn(first, "assistant", "You have just begun.")
        assert after.turns[-2:] == (
            Turn(last.time, "user", "And now?"),
            Turn(last.time, "assistant", "Done."),
        )
        assert sum(turn.role == "user" for turn in after.turns) == 2


def test_the_same_request_is_made_once_also_in_later_runs(tmp_path: Path) -> None:
    with serving(friendly) as server:
        first = rewrite(server, tmp_path, Skipped())
        asked = [json.dumps(body) for body in server.asked]
        assert len(asked) == len(set(asked)) > 1
        twice = [*made(), *made()]
        again = rewritten(twice, Endpoint(server.url, "writer", "secret", tmp_path), 2, Skipped())
        assert again == [*first, *first]
        assert len(server.asked) == len(asked)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("Certainly! Here are the exchanges:", "JSON"),
        ('{"exchanges": [{"time": "soon", "question": "a", "answer": "b"}]}', "JSON"),
        ('{"exchanges": []}', "no exchange"),
        ("", "JSON"),
        (exchanges((2.0, "a", "b"), (1e6, "a", "b")), "outside the clip"),
        (exchanges((-1.0, "a", "b")), "outside the clip"),
        (exchanges((5.0, "a", " \n")), "empty"),
        (exchanges((5.0, "a" * (LONGEST + 1), "b")), f"more than {LONGEST}"),
    ],
)
def test_what_fails_a_check_is_counted_and_the_template_stays(
    reply: str, reason: str, tmp_path: Path
) -> None:
    skipped = Skipped()
    before = made()[:1]
    with serving(lambda _: reply) as server:
        endpoint = Endpoint(server.url, "writer", "secret", tmp_path)
        assert rewritten(before, endpoint, 2, skipped) == before
    assert skipped.counts.total() == 1
    assert reason in str(skipped) and f"kitchen at {before[0].start:g} s" in str(skipped)


def test_an_endpoint_that_fails_ends_it_and_what_came_is_kept(tmp_path: Path) -> None:
    broken = threading.Event()

    def replies(request: dict[str, Any]) -> str | int:
        return 401 if broken.is_set() else friendly(request)

    with serving(replies) as server:
        endpoint = Endpoint(server.url, "writer", "secret", tmp_path)
        rewritten(made()[:1], endpoint, 2, Skipped())
        broken.set()
        with pytest.raises(EndpointError, match=r"out of order.*run this again"):
            rewritten(made(), endpoint, 2, Skipped())
        broken.clear()
        server.asked.clear()
        written = rewritten(made(), endpoint, 2, Skipped())
    assert len(server.asked) == len(written) - 1


def test_the_command_writes_dialogues_and_tells_what_it_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDEOLLM_CACHE", str(tmp_path / "cache"))
    annotation, out = tmp_path / "own.jsonl", tmp_path / "dialogues.jsonl"
    segments = [{"start": time, "end": time + 2, "text": f"does thing {time}"} for time in (0, 4, 8)]
    segments.append({"start": -1, "end": 2, "text": "nothing"})
    annotation.write_text(json.dumps({"video": "k", "segments": segments}) + "\n")
    command = ["dialogues", "jsonl", str(annotation), "--questions", "1"]
    assert run(command) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["turns"][0] == {"time": 0.0, "role": "assistant", "text": "Does thing 0."}
    assert "1 dialogues of 1 videos, 1 questions" in told.err
    assert "1 x segment before the video's beginning (first: k at -1 s)" in told.err
    with serving(friendly) as server:
        assert run([*command, "--out", str(out), "--llm", server.url, "--llm-model", "writer"]) == 0
    assert server.keys == {"Bearer none"}
    (dialogue,) = read_dialogues(out)
    assert Turn(8.0, "user", "And now?") in dialogue.turns


def test_a_prepared_folder_tells_how_fast_and_how_long_its_videos_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    annotated = AnnotatedVideo("k", (Segment(0.6, "does this"), Segment(5.0, "does that")))
    with ShardWriter(tmp_path, Encoding("tiny", 32, 4.0), [annotated]) as writer:
        features = VideoFeatures(np.zeros((12, 1, 2), np.float16), np.arange(12) / 4, duration=3.0)
        writer.add(write_shard(writer.new_path(), {"k": features}))
    assert run(["dialogues", "prepared", str(tmp_path), "--questions", "0"]) == 0
    told = capsys.readouterr()
    turns = [{"time": 0.75, "role": "assistant", "text": "Does this."}]
    assert json.loads(told.out)["turns"] == turns
    assert "1 x segment beyond the video's end (first: k at 5 s)" in told.err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["activitynet", "own.jsonl"], "ego4d-goalstep"),
        (["jsonl", "own.jsonl"], "own.jsonl"),
        (["jsonl", "own.jsonl", "--llm", "http://localhost:1/v1"], "--llm-model"),
        (["prepared", "."], "videollm prepare"),
    ],
)
def test_the_command_refuses_in_one_line(
    arguments: list[str],
    told: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["dialogues", *arguments]) != 0
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1
