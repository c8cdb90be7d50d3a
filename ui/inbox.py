"""What a client has sent and the model has not got to yet."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from enum import Enum, auto
from time import monotonic

import numpy as np

from ui.decoding import decode
from ui.protocol import EncodedFrame, Notice, ProtocolError, Question

FRAMES = 4  # that wait: more are read no faster (benchmarks/README.md), and are older when they are
QUESTIONS = 8


@dataclass
class WaitingFrame:
    """A frame that may still be on its way through the decoder of pictures."""

    sequence: int
    time: float
    """Seconds since the stream's first frame."""
    pixels: Future[np.ndarray]
    """uint8 [height, width, 3]."""
    jpeg: bytes | None = None
    """The same as a picture file, of frames that the server took itself."""
    received: float = field(default_factory=monotonic)


class Command(Enum):
    RESET = auto()
    END = auto()


Other = Question | Command | Notice
Input = list[WaitingFrame] | Other
"""Frames that can be read together, or one other thing."""


class Inbox:
    """Inputs in the order in which they came. Of frames the newest `FRAMES` are kept, of questions the first
    `QUESTIONS`. Filled on the event loop's thread, emptied on the engine's."""

    def __init__(self, pool: Executor, max_side: int, ready: Callable[[], None]) -> None:
        self._pool = pool
        self._max_side = max_side
        self._ready = ready  # called from any thread when something can be taken
        self._lock = threading.Lock()
        self._waiting: deque[WaitingFrame | Other] = deque()

    def put_frame(self, frame: EncodedFrame, time: float) -> WaitingFrame | None:
        """Take a frame in; the one that lost its place to it, if any."""
        return self.put(WaitingFrame(frame.sequence, time, self._pool.submit(decode, frame, self._max_side)))

    def put(self, entry: WaitingFrame) -> WaitingFrame | None:
        """Take in a frame whose decoding has begun, as `put_frame` does."""
        with self._lock:
            frames = [waiting for waiting in self._waiting if isinstance(waiting, WaitingFrame)]
            dropped = frames[0] if len(frames) == FRAMES else None
            if dropped is not None:
                self._waiting.remove(dropped)
                dropped.pixels.cancel()
            self._waiting.append(entry)
        entry.pixels.add_done_callback(lambda _: self._ready())
        return dropped

    def put_question(self, question: Question) -> bool:
        """Take a question in; False where too many wait."""
        with self._lock:
            if sum(isinstance(waiting, Question) for waiting in self._waiting) == QUESTIONS:
                return False
            self._waiting.append(question)
        self._ready()
        return True

    def put_command(self, command: Command | Notice) -> None:
        """Have something done, or told, once what came before is dealt with."""
        with self._lock:
            self._waiting.append(command)
        self._ready()

    def clear(self) -> list[WaitingFrame]:
        """Forget all that waits; the frames among it."""
        with self._lock:
            frames = [waiting for waiting in self._waiting if isinstance(waiting, WaitingFrame)]
            self._waiting.clear()
        for frame in frames:
            frame.pixels.cancel()
        return frames

    @property
    def ready(self) -> bool:
        """Whether something can be taken now."""
        with self._lock:
            return bool(self._waiting) and _is_decoded(self._waiting[0])

    def take(self, most_frames: int) -> Input | ProtocolError | None:
        """The next input: what has come, in order, up to a frame that is still being decoded; a ProtocolError
        stands in the place of a frame that couldn't be."""
        with self._lock:
            if not self._waiting or not _is_decoded(self._waiting[0]):
                return None
            first = self._waiting.popleft()
            if not isinstance(first, WaitingFrame):
                return first
            if isinstance(error := first.pixels.exception(), ProtocolError):
                return error
            frames = [first]
            while len(frames) < most_frames and self._waiting:
                following = self._waiting[0]
                if not (isinstance(following, WaitingFrame) and _is_decoded(following)):
                    break
                if following.pixels.exception() is not None:
                    break
                frames.append(following)
                self._waiting.popleft()
            return frames


def _is_decoded(entry: WaitingFrame | Other) -> bool:
    return not isinstance(entry, WaitingFrame) or entry.pixels.done()
