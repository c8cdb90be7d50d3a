"""A conversation as OpenAI's API writes it: one stream that is watched to its end, with what was asked and
answered in between, and a last question."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from msgspec import Struct

from stream.engine import Script
from stream.frames import Event, Frame
from stream.session import Session
from ui.engine_thread import Stream
from ui.media import FPS, MediaError, clip_frames, picture_frame

AHEAD = 16  # frames decoded before the model gets to them


class Url(Struct, frozen=True):
    url: str


class TextPart(Struct, tag_field="type", tag="text", frozen=True):
    text: str


class PicturePart(Struct, tag_field="type", tag="image_url", frozen=True):
    image_url: Url


class ClipPart(Struct, tag_field="type", tag="video_url", frozen=True):
    video_url: Url


class Message(Struct, frozen=True):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart | PicturePart | ClipPart] | None = None

    @property
    def parts(self) -> list[TextPart | PicturePart | ClipPart]:
        return [TextPart(self.content)] if isinstance(self.content, str) else self.content or []

    @property
    def text(self) -> str:
        return "\n".join(part.text for part in self.parts if isinstance(part, TextPart)).strip()


@dataclass
class Turn:
    """What a user shows and asks, up to what the assistant says to it."""

    shown: list[PicturePart | ClipPart] = field(default_factory=list)
    question: str = ""
    answer: str = ""
    """Empty in the last turn."""


class Exchange(Struct, frozen=True):
    """What was asked (None: nothing), and the answer; None is still to be found."""

    question: str | None
    answer: str | None


class StreamOptions(Struct, frozen=True):
    include_usage: bool = False


class ChatRequest(Struct, frozen=True):
    """What of OpenAI's request has a meaning here; the rest (temperature, max_tokens...) is passed over."""

    model: str
    messages: list[Message]
    stream: bool = False
    stream_options: StreamOptions | None = None

    def system(self) -> str | None:
        """The system prompt, if any."""
        texts = [message.text for message in self.messages if message.role in ("system", "developer")]
        return "\n".join(texts) or None

    def turns(self) -> list[Turn]:
        """The conversation; messages of one role in a row are one. Raises MediaError where it doesn't end in
        a question."""
        turns = [Turn()]
        for message in self.messages:
            shown = [part for part in message.parts if not isinstance(part, TextPart)]
            if message.role == "user":
                if turns[-1].answer:
                    turns.append(Turn())
                turns[-1].shown += shown
                turns[-1].question = f"{turns[-1].question}\n{message.text}".strip()
                continue
            if shown:
                raise MediaError("media.misplaced", "pictures and clips belong into user messages")
            if message.role == "assistant":
                turns[-1].answer = f"{turns[-1].answer}\n{message.text}".strip()
        if turns[-1].answer or not turns[-1].question:
            raise MediaError(
                "question.missing", "the last message has to be a user's, and its turn has to hold a text"
            )
        return turns

    def inputs(self, max_side: int, folders: Sequence[Path]) -> Iterator[Frame | Exchange]:
        """All pictures and clips in their order, one after another in time, with what was said in between and
        the last question. Raises MediaError."""
        time = 0.0
        for turn in self.turns():
            for part in turn.shown:
                if isinstance(part, PicturePart):
                    yield picture_frame(part.image_url.url, time, max_side)
                    time += 1 / FPS
                else:
                    for frame in clip_frames(part.video_url.url, time, max_side, folders):
                        yield frame
                        time = frame.time + 1 / FPS
            yield Exchange(turn.question or None, turn.answer or None)


class Usage(Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Answered(Struct, frozen=True):
    text: str
    usage: Usage


class ChatStream(Stream):
    """Reads frames as they are decoded, none is dropped, and what was said between them; then asks."""

    def __init__(self, wake: Callable[[], None], hear: Callable[[str | Answered | Exception], None]) -> None:
        self._wake = wake
        self._hear = (
            hear  # the answer's text so far, then the answer, or what went wrong; of the engine's thread
        )
        self._inputs: queue.Queue[Frame | Exchange] = queue.Queue(AHEAD)
        self._held_back: Exchange | None = None  # until the frames before it are read
        self._asking: Session | None = None
        self._prompt_tokens = 0
        self._over = threading.Event()

    def feed(self, inputs: Iterator[Frame | Exchange]) -> None:
        """Put everything in, as fast as it is read; in a thread of its own. Raises MediaError."""
        for entry in inputs:
            self._put(entry)
            if self.over:
                return

    def _put(self, entry: Frame | Exchange) -> None:
        while not self.over:
            try:
                self._inputs.put(entry, timeout=0.5)
            except queue.Full:
                continue
            self._wake()
            return

    def give_up(self) -> None:
        """Nobody waits for the answer any more."""
        self._over.set()

    @property
    def ready(self) -> bool:
        return self._held_back is not None or not self._inputs.empty()

    @property
    def over(self) -> bool:
        return self._over.is_set()

    def next_script(self, session: Session, most_frames: int) -> Script | None:
        frames: list[Frame] = []
        while self._held_back is None and len(frames) < most_frames and not self._inputs.empty():
            entry = self._inputs.get()
            if isinstance(entry, Frame):
                frames.append(entry)
            else:
                self._held_back = entry
        if frames:
            return session.watching(*frames)
        if self._held_back is None:
            return None
        said, self._held_back = self._held_back, None
        try:
            if said.answer is not None:
                return session.recounting(said.question, said.answer)
            session.ask(said.question or "")
        except ValueError as error:
            self._hear(MediaError("question.invalid", str(error)))
            self._over.set()
            return None
        self._asking, self._prompt_tokens = session, 0
        session.on_text = self._told
        return session.ending()

    def _told(self, text: str) -> None:
        if self._asking is not None and not self._prompt_tokens:
            self._prompt_tokens = self._asking.seen_tokens
        self._hear(text)

    def said(self, events: list[Event]) -> None:
        if self._asking is None:
            return
        text = next(event.text for event in events if event.kind == "answer")
        total = self._asking.seen_tokens
        prompt = self._prompt_tokens or total
        self._hear(Answered(text, Usage(prompt, total - prompt, total)))
        self._over.set()

    def failed(self) -> None:
        self._hear(RuntimeError("the model failed on this request"))
        self._over.set()
