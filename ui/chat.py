"""A conversation as OpenAI's API writes it: one stream that is watched to its end, and one question."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
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
    content: str | list[TextPart | PicturePart | ClipPart]

    @property
    def parts(self) -> list[TextPart | PicturePart | ClipPart]:
        return [TextPart(self.content)] if isinstance(self.content, str) else self.content

    @property
    def text(self) -> str:
        return "\n".join(part.text for part in self.parts if isinstance(part, TextPart)).strip()


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

    def question(self) -> str:
        """The text of the last message. Raises MediaError where this is no single question about pictures."""
        if any(message.role == "assistant" for message in self.messages):
            reason = (
                "earlier answers can't be given back; put all pictures and one question into user messages"
            )
            raise MediaError("history.unsupported", reason)
        users = [message for message in self.messages if message.role == "user"]
        if not users or not users[-1].text:
            raise MediaError("question.missing", "the last user message has to hold a text")
        return users[-1].text

    def frames(self, max_side: int, folders: Sequence[Path]) -> Iterator[Frame]:
        """All pictures and clips in their order, one after another in time. Raises MediaError."""
        time = 0.0
        for part in (part for message in self.messages for part in message.parts):
            if isinstance(part, PicturePart):
                yield picture_frame(part.image_url.url, time, max_side)
                time += 1 / FPS
            elif isinstance(part, ClipPart):
                for frame in clip_frames(part.video_url.url, time, max_side, folders):
                    yield frame
                    time = frame.time + 1 / FPS


class Usage(Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Answered(Struct, frozen=True):
    text: str
    usage: Usage


class ChatStream(Stream):
    """Reads frames as they are decoded, none is dropped; then asks."""

    def __init__(
        self, question: str, wake: Callable[[], None], hear: Callable[[str | Answered | Exception], None]
    ) -> None:
        self._question = question
        self._wake = wake
        self._hear = (
            hear  # the answer's text so far, then the answer, or what went wrong; of the engine's thread
        )
        self._frames: queue.Queue[Frame | None] = queue.Queue(AHEAD)
        self._asking: Session | None = None
        self._prompt_tokens = 0
        self._over = threading.Event()

    def feed(self, frames: Iterator[Frame]) -> None:
        """Put all frames in, as fast as they are read; in a thread of its own. Raises MediaError."""
        for frame in frames:
            self._put(frame)
            if self.over:
                return
        self._put(None)

    def _put(self, frame: Frame | None) -> None:
        while not self.over:
            try:
                self._frames.put(frame, timeout=0.5)
            except queue.Full:
                continue
            self._wake()
            return

    def give_up(self) -> None:
        """Nobody waits for the answer any more."""
        self._over.set()

    @property
    def ready(self) -> bool:
        return not self._frames.empty()

    @property
    def over(self) -> bool:
        return self._over.is_set()

    def next_script(self, session: Session, most_frames: int) -> Script | None:
        waiting = [self._frames.get() for _ in range(min(most_frames, self._frames.qsize()))]
        frames = [frame for frame in waiting if frame is not None]
        if len(frames) == len(waiting):
            return session.watching(*frames)
        if frames:
            self._frames.put(
                None
            )  # what comes last waits for the next turn; there is room, it was just taken
            return session.watching(*frames)
        try:
            session.ask(self._question)
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
