"""A language model behind an OpenAI-compatible endpoint writes the questions and answers of dialogues anew.

What it writes is checked, and where it fails a check, the templates' questions stay.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from train.data.annotations import Dialogue, Skipped
from train.data.dialogues import TOLERANCE, Exchange, part, with_exchanges
from videollm.files import write_whole

LONGEST = 400  # characters of a question or an answer
PARALLEL = 8  # requests under way
SECONDS = 120.0  # to wait for a reply

INSTRUCTION = f"""\
Somebody wears a camera and talks with an assistant that sees what the camera sees, as it happens. You are
given, as JSON, a part of the stream: its events, each with its time in seconds, and drafts of questions with
their answers. Write the exchanges anew: natural spoken questions of varied wording, short helpful answers.

- Answers hold only what the events and drafts tell. An answer knows nothing of events after its time, unless
  the draft at that time tells what comes next.
- Say nothing of times in seconds, drafts, annotations or "C"; the wearer of the camera is "you".
- `time` stays between `start` and `end`; a question or an answer has at most {LONGEST} characters.

Reply with JSON alone: {{"exchanges": [{{"time": 12.5, "question": "...", "answer": "..."}}]}}"""


class EndpointError(Exception):
    """The endpoint can't be used; the message is one line that says what to do."""


class Reply(msgspec.Struct, forbid_unknown_fields=True):
    """What the language model is to reply."""

    exchanges: list[Exchange]


@dataclass
class Endpoint:
    """A language model behind an OpenAI-compatible endpoint; its replies are kept in the folder `cache`.

    The same request is never made twice, also in later runs. Thread-safe.
    """

    url: str
    model: str
    key: str
    cache: Path

    def __post_init__(self) -> None:
        try:
            from openai import OpenAI
        except ModuleNotFoundError:
            raise EndpointError("--llm needs the package openai: pip install -e '.[llm]'") from None
        self._client = OpenAI(base_url=self.url, api_key=self.key, timeout=SECONDS)
        self.cache.mkdir(parents=True, exist_ok=True)

    def reply(self, request: str) -> str:
        """What the model replies to the request, "" where it refuses. Raises EndpointError."""
        body = self._body(request)
        kept = self.cache / f"{hashlib.sha256(msgspec.json.encode([self.url, body])).hexdigest()}.json"
        if not kept.exists():
            write_whole(kept, msgspec.json.encode({"request": body, "reply": self._ask(body)}))
        reply: str = msgspec.json.decode(kept.read_bytes())["reply"]
        return reply

    def _body(self, request: str) -> dict[str, Any]:
        # OpenAI's own endpoint wants an object at the root, not a reference to one.
        _, parts = msgspec.json.schema_components([Reply], ref_template="#/$defs/{name}")
        schema = {"name": "reply", "schema": parts.pop("Reply") | {"$defs": parts}, "strict": True}
        return {
            "model": self.model,
            "messages": [
                {"role": "system", "content": INSTRUCTION},
                {"role": "user", "content": request},
            ],
            "response_format": {"type": "json_schema", "json_schema": schema},
        }

    def _ask(self, body: dict[str, Any]) -> str:
        from openai import OpenAIError

        try:
            completion = self._client.chat.completions.create(**body)
        except OpenAIError as error:
            raise EndpointError(
                f"{self.url} failed ({error}); what it replied before is kept: mend it, then run this again"
            ) from error
        return (completion.choices[0].message.content if completion.choices else None) or ""


def rewritten(
    dialogues: Iterable[Dialogue],
    endpoint: Endpoint,
    fps: float,
    skipped: Skipped,
    told: Callable[[], object] = lambda: None,
) -> list[Dialogue]:
    """The dialogues with the questions and answers that the language model wrote, moved to frames (`fps` a
    second).

    Where what it wrote fails a check, the dialogue stays as it is, and is counted in `skipped`. `told` is
    called after each dialogue. Raises EndpointError.
    """
    dialogues = list(dialogues)
    requests = [_request(dialogue) for dialogue in dialogues]
    pool = ThreadPoolExecutor(PARALLEL)
    try:
        replies = {request: pool.submit(endpoint.reply, request) for request in dict.fromkeys(requests)}
        written = []
        for dialogue, request in zip(dialogues, requests, strict=True):
            written.append(_taken(dialogue, replies[request].result(), fps, skipped))
            told()
    finally:
        pool.shutdown(cancel_futures=True)
    return written


def _request(dialogue: Dialogue) -> str:
    narrated, exchanges = part(dialogue)
    events = [{"time": turn.time, "text": turn.text} for turn in narrated]
    request = {"start": dialogue.start, "end": dialogue.end, "events": events, "drafts": exchanges}
    return msgspec.json.encode(request).decode()


def _taken(dialogue: Dialogue, reply: str, fps: float, skipped: Skipped) -> Dialogue:
    try:
        exchanges = msgspec.json.decode(reply, type=Reply).exchanges
        if not exchanges:
            raise ValueError("no exchange")
        for exchange in exchanges:
            _check(exchange, dialogue)
    except ValueError as error:  # DecodeError is one
        reason = "reply not of the JSON asked for" if isinstance(error, msgspec.DecodeError) else str(error)
        skipped.add(f"rewriting: {reason}", f"{dialogue.video} at {dialogue.start:g} s")
        return dialogue
    narrated, _ = part(dialogue)
    at_frames = [
        Exchange(
            max(math.floor(each.time * fps + TOLERANCE) / fps, dialogue.start),
            " ".join(each.question.split()),
            " ".join(each.answer.split()),
        )
        for each in exchanges
    ]
    return with_exchanges(dialogue, narrated, at_frames)


def _check(exchange: Exchange, dialogue: Dialogue) -> None:
    if not dialogue.start <= exchange.time <= dialogue.end:
        raise ValueError("time outside the clip")
    for text in (exchange.question, exchange.answer):
        if not text.strip():
            raise ValueError("empty question or answer")
        if len(text) > LONGEST:
            raise ValueError(f"question or answer of more than {LONGEST} characters")
