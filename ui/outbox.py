"""What a client has not been sent yet, and what it may want again."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable

from msgspec.structs import replace

from ui.protocol import (
    KINDS,
    Answer,
    AnswerDelta,
    FrameAck,
    Kind,
    Narration,
    NarrationDelta,
    Notice,
    ServerError,
    ServerMessage,
    SessionEnded,
)

Lasting = Narration | Answer | Notice | SessionEnded
"""What is kept, and sent anew to a client that missed it."""
Passing = NarrationDelta | AnswerDelta | ServerError

KEPT = 10_000
MOST_LASTING = 256
MOST_PASSING = 64
UNNUMBERED = 0


class Outbox:
    """Messages are numbered as they come and sent in that order. What a slow reader leaves lying is bounded:
    passing messages are left out, acks merged, and with `MOST_LASTING` others it has fallen behind: its
    connection gets nothing more.

    Filled on any thread, emptied on the event loop's.
    """

    def __init__(self, wanted: frozenset[Kind]) -> None:
        self.wanted = wanted
        self.totals = FrameAck(UNNUMBERED, 0, 0)
        """All acks so far, as one."""
        self._lock = threading.Lock()
        self._latest_id = 0
        self._kept: deque[Lasting] = deque(maxlen=KEPT)
        self._gone_id = 0  # the latest that is not kept any more
        self._unsent: deque[Lasting | Passing | FrameAck] = deque()
        self._room = MOST_LASTING
        self._ack: FrameAck | None = None
        self._wake: Callable[[], None] | None = None  # of the connection, where there is one
        self.has_fallen_behind = False
        """Whether the client left too much lying."""

    def attach(self, wake: Callable[[], None], last_event_id: int) -> bool:
        """A connection begins to take messages, those after `last_event_id` first; whether some of them are
        lost. `wake` is called, from any thread, when there is something to take."""
        with self._lock:
            missed = [message for message in self._kept if message.event_id > last_event_id]
            self._unsent = deque(message for message in missed if self._is_wanted(message))
            self._room = len(self._unsent) + MOST_LASTING
            self._ack = None
            self._wake = wake
            self.has_fallen_behind = False
            return self._gone_id > last_event_id

    def detach(self) -> None:
        """The connection is gone."""
        with self._lock:
            self._wake = None
            self._unsent.clear()
            self._ack = None

    def number(self) -> int:
        """The next event id, for a message that goes round the queue."""
        with self._lock:
            self._latest_id += 1
            return self._latest_id

    def keep(self, message: Lasting) -> None:
        """Send a message, now or to whoever resumes the session."""
        with self._lock:
            if isinstance(message, SessionEnded) and (ack := self._take_ack()) is not None:
                self._unsent.append(ack)  # nothing follows the end
            self._latest_id += 1
            numbered = replace(message, event_id=self._latest_id)
            if len(self._kept) == KEPT:
                self._gone_id = self._kept[0].event_id
            self._kept.append(numbered)
            if not self._is_heard or not self._is_wanted(numbered):
                return
            self._unsent.append(numbered)
            if len(self._unsent) > self._room:
                self.has_fallen_behind = True
                self._unsent.clear()  # they are kept
                self._ack = None
            self._notify()

    def tell(self, message: Passing) -> None:
        """Send a message unless nobody listens or much lies unsent already."""
        with self._lock:
            if not self._is_heard or len(self._unsent) >= MOST_PASSING or not self._is_wanted(message):
                return
            self._latest_id += 1
            self._unsent.append(replace(message, event_id=self._latest_id))
            self._notify()

    def acknowledge(
        self,
        sequence: int,
        *,
        read: int = 0,
        skipped: int = 0,
        dropped: int = 0,
        refused: int = 0,
        gives_credit: bool = True,
    ) -> None:
        """So many frames are done with, `sequence` the newest of them."""
        credits = read + skipped + dropped + refused if gives_credit else 0
        ack = FrameAck(UNNUMBERED, sequence, credits, read, skipped, dropped, refused)
        with self._lock:
            self.totals = _merged(self.totals, ack)
            if self._is_heard:
                self._ack = ack if self._ack is None else _merged(self._ack, ack)
                self._notify()

    def take(self) -> ServerMessage | None:
        """The next message to send."""
        with self._lock:
            return self._unsent.popleft() if self._unsent else self._take_ack()

    def kept(self) -> Iterable[Lasting]:
        """What is kept, oldest first."""
        with self._lock:
            return list(self._kept)

    @property
    def _is_heard(self) -> bool:
        """Whether there is a connection that keeps up."""
        return self._wake is not None and not self.has_fallen_behind

    def _notify(self) -> None:
        if self._wake is not None:
            self._wake()

    def _take_ack(self) -> FrameAck | None:
        if self._ack is None:
            return None
        self._latest_id += 1
        ack, self._ack = replace(self._ack, event_id=self._latest_id), None
        return ack

    def _is_wanted(self, message: Lasting | Passing) -> bool:
        tag = message.__struct_config__.tag
        return tag not in KINDS or tag in self.wanted


def _merged(one: FrameAck, other: FrameAck) -> FrameAck:
    return FrameAck(
        UNNUMBERED,
        max(one.sequence, other.sequence),
        one.credits + other.credits,
        one.read + other.read,
        one.skipped + other.skipped,
        one.dropped + other.dropped,
        one.refused + other.refused,
    )
