"""OpenAI's own client, against the server."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from conftest import Recorder, terse_model
from openai import OpenAI
from servers import Running, jpeg, running, until

from stream.session import Session
from stream.sources import open_source
from ui.media import FPS, picture_frame
from videollm import VideoLLM
from videollm.checkpoints import assets_folder

SAMPLE = assets_folder() / "sample.mp4"


@pytest.fixture(scope="module")
def model() -> Iterator[VideoLLM]:
    with terse_model(20) as model:
        yield model


@pytest.fixture(scope="module")
def server(model: VideoLLM) -> Iterator[Running]:
    with running(model, token="secret", max_sessions=2, folders=(SAMPLE.parent,)) as running_server:
        yield running_server


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.http}/v1", api_key="secret", max_retries=0) as made:
        yield made


def picture_part(seed: int = 0) -> dict[str, Any]:
    return _part("image_url", f"data:image/jpeg;base64,{base64.b64encode(jpeg(seed)).decode()}")


def clip_part(url: str) -> dict[str, Any]:
    return _part("video_url", url)


def _part(kind: str, url: str) -> dict[str, Any]:
    return {"type": kind, kind: {"url": url}}


def user(*parts: dict[str, Any], text: str = "What is in view?") -> list[Any]:
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def watched(model: VideoLLM, server: Running, source: str) -> str:
    alone = Session(model)
    with open_source(source, FPS, max_side=server.sessions.max_side) as opened:
        for frame in opened:
            alone.step(frame)
    alone.ask("What is in view?")
    return alone.finish()[-1].text


def test_the_model_is_listed(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]


def test_pictures_are_answered_about(client: OpenAI) -> None:
    one, again, other = (
        client.chat.completions.create(model="tiny", messages=user(picture_part(seed), picture_part(9)))
        for seed in (1, 1, 2)
    )
    texts = [answered.choices[0].message.content for answered in (one, again, other)]
    assert texts[0] == texts[1] != texts[2]
    assert one.choices[0].finish_reason == "stop"
    assert one.usage and one.usage.completion_tokens > 0
    assert one.usage.total_tokens == one.usage.prompt_tokens + one.usage.completion_tokens


def test_a_clip_of_an_allowed_folder_and_the_same_as_data_are_watched_whole(
    client: OpenAI, server: Running, model: VideoLLM
) -> None:
    data = base64.b64encode(SAMPLE.read_bytes()).decode()
    expected = watched(model, server, str(SAMPLE))
    for url in (f"file://{SAMPLE}", f"data:video/mp4;base64,{data}"):
        answered = client.chat.completions.create(model="tiny", messages=user(clip_part(url)))
        assert answered.choices[0].message.content == expected


def test_a_stream_of_words_makes_up_the_answer(client: OpenAI) -> None:
    messages = user(picture_part())
    whole = client.chat.completions.create(model="tiny", messages=messages)
    chunks = list(
        client.chat.completions.create(
            model="tiny", messages=messages, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    assert chunks[-2].choices[0].finish_reason == "stop"


def test_a_system_prompt_and_texts_as_strings_are_taken(client: OpenAI) -> None:
    messages: list[Any] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What?"}]
    assert client.chat.completions.create(model="tiny", messages=messages).choices[0].message.content


def test_an_earlier_conversation_is_read_as_a_session_would(
    client: OpenAI, model: VideoLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(messages: list[Any]) -> tuple[list[int], torch.Tensor]:
        recorder = Recorder(monkeypatch)
        client.chat.completions.create(model="tiny", messages=messages)
        return recorder.ids, torch.cat(recorder.pixels)

    first = user(picture_part(1), picture_part(2))
    answer = client.chat.completions.create(model="tiny", messages=first).choices[0].message
    history = [
        *[{"role": "assistant", "content": "Hello!"}, *first],
        *[answer.model_dump(), {"role": "assistant", "content": [{"type": "text", "text": "More."}]}],
        *[*user(picture_part(3), text=""), {"role": "assistant", "content": "A cat."}],
    ]
    ids, pixels = read([*history, *user(picture_part(4), text="And"), *user(text="now?")])

    recorder, alone = Recorder(monkeypatch), Session(model)
    pictures = [
        picture_frame(picture_part(seed)["image_url"]["url"], (seed - 1) / FPS, 64) for seed in (1, 2, 3, 4)
    ]

    def recount(question: str | None, answer: str) -> None:
        alone.engine.run(alone.slot, alone.recounting(question, answer))

    recount(None, "Hello!")
    alone.step(*pictures[:2])
    recount("What is in view?", f"{answer.content}\nMore.")
    alone.step(pictures[2])
    recount(None, "A cat.")
    alone.step(pictures[3])
    alone.ask("And\nnow?")
    alone.finish()
    assert ids == recorder.ids
    assert pixels.equal(torch.cat(recorder.pixels))


@pytest.mark.parametrize(
    ("messages", "code"),
    [
        (user(_part("image_url", "http://127.0.0.1/x.jpg")), "url.refused"),
        (user(_part("image_url", "https://example.org/x.jpg")), "url.refused"),
        (user(_part("image_url", f"file://{SAMPLE}")), "url.refused"),
        (user(_part("image_url", "data:image/jpeg;base64,!!!")), "url.malformed"),
        (user(_part("image_url", "data:image/jpeg,abc")), "url.malformed"),
        (user(_part("image_url", "data:image/jpeg;base64,aGVsbG8=")), "frame.undecodable"),
        (user(clip_part("http://169.254.169.254/latest")), "url.refused"),
        (user(clip_part("file:///etc/passwd")), "path.refused"),
        (user(clip_part(f"file://{SAMPLE.parent}/../README.md")), "path.refused"),
        (user(clip_part(f"file://{SAMPLE.parent}/README.md")), "clip.unreadable"),
        (
            user(
                clip_part(
                    "data:video/mp4;base64," + base64.b64encode(b"#EXTM3U\nfile:///etc/passwd").decode()
                )
            ),
            "clip.unsupported",
        ),
        (user(text=" "), "question.missing"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "question.missing"),
        ([{"role": "user"}], "question.missing"),
        ([{"role": "assistant", "content": [picture_part()]}, *user()], "media.misplaced"),
        ([{"role": "assistant", "content": 3000 * "b"}, *user()], "question.invalid"),
        ([{"role": "tool", "content": "a"}], "request.invalid"),
        (user(_part("input_audio", "x")), "request.invalid"),
    ],
)
def test_what_is_not_taken_is_an_error_in_openais_form(
    client: OpenAI, messages: list[Any], code: str
) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as error:
        client.chat.completions.create(model="tiny", messages=messages)
    assert error.value.code == code
    assert error.value.body["message"]  # type: ignore[index]


def test_another_model_is_not_found(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="no model gpt"):
        client.chat.completions.create(model="gpt", messages=user())


def test_a_wrong_key_is_refused(server: Running) -> None:
    with (
        OpenAI(base_url=f"{server.http}/v1", api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()


def test_a_full_server_says_so_and_slots_come_back(client: OpenAI, server: Running) -> None:
    one, two = (server.start(token="secret") for _ in range(2))
    with pytest.raises(openai.InternalServerError) as error:
        client.chat.completions.create(model="tiny", messages=user())
    assert (error.value.status_code, error.value.code) == (503, "server.full")
    one.end()
    two.end()
    client.chat.completions.create(model="tiny", messages=user())
    until(lambda: not server.sessions.engine._seats)


def test_who_goes_away_in_the_middle_leaves_no_slot_taken(client: OpenAI, server: Running) -> None:
    for _ in range(10):  # in the middle of whatever the engine's thread is doing
        chunks = client.chat.completions.create(model="tiny", messages=user(picture_part()), stream=True)
        next(iter(chunks))
        chunks.close()
        until(lambda: not server.sessions.engine._seats)
    assert server.sessions.engine.alive


def test_a_body_too_large_is_refused(server: Running, tmp_path: Path) -> None:
    from ui.openai_api import MAX_BODY_BYTES

    request = urllib.request.Request(
        f"{server.http}/v1/chat/completions",
        data=b" " * (MAX_BODY_BYTES + 1),
        headers={"Authorization": "Bearer secret"},
    )
    with pytest.raises((urllib.error.HTTPError, ConnectionError, urllib.error.URLError)) as error:
        urllib.request.urlopen(request, timeout=30)
    if isinstance(error.value, urllib.error.HTTPError):
        assert error.value.code == 413
        assert json.loads(error.value.read())["error"]["code"] == "request.too_large"
