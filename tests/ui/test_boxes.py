"""Inbox and outbox: what may be lost, and what never is."""

from __future__ import annotations

from concurrent.futures import Executor, Future
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from servers import jpeg

from ui import outbox as outbox_module
from ui.inbox import FRAMES, QUESTIONS, Command, Inbox
from ui.outbox import MOST_LASTING, MOST_PASSING, Outbox
from ui.protocol import (
    KINDS,
    EncodedFrame,
    FrameAck,
    FrameFormat,
    Narration,
    NarrationDelta,
    ProtocolError,
    Question,
)


class OutboxMachine(RuleBasedStateMachine):
    """A client that comes and goes, and reads as it likes."""

    @initialize()
    def begin(self) -> None:
        self.outbox = Outbox(KINDS)
        self.kept = 0
        self.heard: list[Narration] = []
        self.last_id = 0
        self.owed = 0  # credits acknowledged since the connection began, and not heard of
        self.connected = False

    @rule()
    def say(self) -> None:
        self.kept += 1
        self.outbox.keep(Narration(0, "n", self.kept, 0.0, 0.0, str(self.kept)))

    @rule(count=st.integers(1, 100))
    def babble(self, count: int) -> None:
        for _ in range(count):
            self.outbox.tell(NarrationDelta(0, "n", self.kept, 0.0, "word"))

    @rule(read=st.integers(0, 3), dropped=st.integers(1, 3))
    def acknowledge(self, read: int, dropped: int) -> None:
        self.outbox.acknowledge(self.kept, read=read, dropped=dropped)
        self.owed += (read + dropped) * self.connected

    @rule()
    def connect(self) -> None:
        assert not self.outbox.attach(lambda: None, self.last_id)
        self.connected, self.owed = True, 0

    @rule()
    def disconnect(self) -> None:
        self.outbox.detach()
        self.connected, self.owed = False, 0

    @rule(count=st.integers(1, 20))
    def read(self, count: int) -> None:
        for _ in range(count):
            if (message := self.outbox.take()) is None:
                break
            assert self.connected
            assert message.event_id > self.last_id
            self.last_id = message.event_id
            if isinstance(message, Narration):
                self.heard.append(message)
            elif isinstance(message, FrameAck):
                assert message.credits == self.owed
                self.owed = 0

    @invariant()
    def is_bounded(self) -> None:
        if hasattr(self, "outbox"):
            assert len(self.outbox._unsent) <= self.outbox._room
            passing = [message for message in self.outbox._unsent if isinstance(message, NarrationDelta)]
            assert len(passing) <= MOST_PASSING

    @invariant()
    def nothing_said_is_lost_or_told_twice(self) -> None:
        if hasattr(self, "outbox"):
            assert [message.sequence for message in self.heard] == list(range(1, len(self.heard) + 1))

    def teardown(self) -> None:
        if hasattr(self, "outbox"):
            self.connect()
            self.read(10_000)
            assert len(self.heard) == self.kept


OutboxMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestOutbox = OutboxMachine.TestCase


def test_an_outbox_tells_that_it_was_left_lying() -> None:
    box = Outbox(KINDS)
    box.attach(lambda: None, 0)
    for number in range(MOST_LASTING + 1):
        assert not box.has_fallen_behind
        box.keep(Narration(0, "n", number, 0.0, 0.0, ""))
    assert box.has_fallen_behind
    assert box.take() is None
    box.attach(lambda: None, 0)
    assert not box.has_fallen_behind
    assert [message.event_id for message in iter(box.take, None) if message] == list(
        range(1, MOST_LASTING + 2)
    )


def test_what_is_too_old_to_be_told_anew_is_told_to_be_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_module, "KEPT", 5)
    box = Outbox(KINDS)
    for number in range(7):
        box.keep(Narration(0, "n", number, 0.0, 0.0, ""))
    assert box.attach(lambda: None, 1)
    assert not box.attach(lambda: None, 2)


class Later(Executor):
    """Decodes when it is told to."""

    def __init__(self) -> None:
        self.pending: list[tuple[Future[Any], Any]] = []

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.pending.append((future, lambda: function(*args, **kwargs)))
        return future

    def run(self, index: int) -> None:
        future, work = self.pending.pop(index % len(self.pending))
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(work())
            except ProtocolError as error:
                future.set_exception(error)


class InboxMachine(RuleBasedStateMachine):
    """A client that sends what it likes, and pictures that are decoded in any order."""

    @initialize()
    def begin(self) -> None:
        self.pool = Later()
        self.inbox = Inbox(self.pool, 64, lambda: None)
        self.sequence = 0
        self.expected: list[object] = []  # what waits: sequence numbers, question ids, commands
        self.damaged: set[int] = set()

    @rule(damaged=st.booleans())
    def frame(self, damaged: bool) -> None:
        self.sequence += 1
        data = b"no picture" if damaged else jpeg()
        if damaged:
            self.damaged.add(self.sequence)
        frame = EncodedFrame(FrameFormat.JPEG, self.sequence, 0.0, data)
        dropped = self.inbox.put_frame(frame, float(self.sequence))
        frames = [entry for entry in self.expected if isinstance(entry, int)]
        assert (dropped and dropped.sequence) == (frames[0] if len(frames) == FRAMES else None)
        if dropped is not None:
            self.expected.remove(dropped.sequence)
        self.expected.append(self.sequence)

    @rule()
    def question(self) -> None:
        waiting = sum(isinstance(entry, str) for entry in self.expected)
        taken = self.inbox.put_question(Question(f"q{self.sequence}", "What?"))
        assert taken == (waiting < QUESTIONS)
        if taken:
            self.expected.append(f"q{self.sequence}")

    @rule()
    def command(self) -> None:
        self.inbox.put_command(Command.RESET)
        self.expected.append(Command.RESET)

    @rule()
    def clear(self) -> None:
        frames = [entry for entry in self.expected if isinstance(entry, int)]
        assert [frame.sequence for frame in self.inbox.clear()] == frames
        self.expected.clear()

    @rule(index=st.integers(0, 1000))
    def decode(self, index: int) -> None:
        if self.pool.pending:
            self.pool.run(index)

    @rule(most=st.integers(1, FRAMES))
    def take(self, most: int) -> None:
        ready = self.inbox.ready
        taken = self.inbox.take(most)
        assert ready == (taken is not None)
        match taken:
            case ProtocolError():
                assert taken.sequence == self.expected.pop(0)
                assert taken.sequence in self.damaged
            case Question():
                assert taken.id == self.expected.pop(0)
            case Command():
                assert taken is self.expected.pop(0)
            case list():
                assert 1 <= len(taken) <= most
                for frame in taken:
                    assert frame.sequence == self.expected.pop(0)
                    assert frame.sequence not in self.damaged
                    assert frame.pixels.result().shape == (48, 64, 3)


InboxMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestInbox = InboxMachine.TestCase
