"""A client's session on the server: it outlives its connections for the time of grace."""

from __future__ import annotations

import logging
import math
import secrets
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor

from msgspec import UNSET

from stream.engine import Script
from stream.frames import Event, Frame, JournalNotice
from stream.journal import JournalError, JournalFolder
from stream.session import Session
from stream.sources.sampling import Sampler
from ui.engine_thread import Stream
from ui.inbox import FRAMES, Command, Inbox, WaitingFrame
from ui.metrics import Metrics
from ui.outbox import UNNUMBERED, Outbox
from ui.protocol import (
    Answer,
    AnswerDelta,
    EndReason,
    ErrorCode,
    Figures,
    Narration,
    NarrationDelta,
    Notice,
    NoticeCode,
    ProtocolError,
    Question,
    ServerError,
    SessionEnded,
    SessionStart,
    SessionUpdate,
    parse_frame,
)

LATENCIES = 1000
REMEMBERED_QUESTIONS = 1000
NOTICE_SECONDS = 5.0
log = logging.getLogger("videollm")


class LiveSession(Stream):
    """Frames and questions go through the inbox to the engine's thread, what is said through the outbox to
    whichever connection there is. What a client does is called on the event loop's thread, the methods of
    `Stream` on the engine's."""

    credits = FRAMES
    """How many frames a client may send before the first ack."""

    def __init__(
        self,
        start: SessionStart,
        pool: Executor,
        max_side: int,
        wake_engine: Callable[[], None],
        metrics: Metrics,
        journals: JournalFolder | None = None,
    ) -> None:
        self.id = secrets.token_hex(8)
        self.resume_token = secrets.token_urlsafe(32)
        self.outbox = Outbox(start.events)
        self.started = time.time()
        self.last_sequence: int | None = None
        self.ended = threading.Event()
        self._wake_engine = wake_engine
        self._inbox = Inbox(pool, max_side, wake_engine)
        self._metrics = metrics
        self._begin_stream()
        self._sampler = Sampler(start.fps)
        self._fps = start.fps
        self._threshold: float | None = start.threshold
        self._newest_time = 0.0
        self._received = 0
        self._known_questions: deque[str] = deque(maxlen=REMEMBERED_QUESTIONS)
        self._unannounced_drops = 0
        self._next_notice = 0.0
        self._end_reason: EndReason | None = None
        self._untold: deque[Event] = deque()  # what the journal has yet to be told
        # Of the engine's thread:
        self._journals = journals
        self._has_begun = False  # the stream, and with it its journal
        self._reading: list[WaitingFrame] = []
        self._asked: Question | None = None
        self._read_sequence: int | None = None
        self._spoken, self._spoken_at = "", 0.0  # of the reply that is being made
        self._narrations = self._answers = 0
        self._latencies: deque[float] = deque(maxlen=LATENCIES)

    # What a client does

    def receive_frame(self, message: bytes) -> None:
        """Take a binary message in; whatever is wrong with it is told to the client."""
        self._received += 1
        try:
            frame = parse_frame(message)
            stream_time = self._place(frame.sequence, frame.time)
        except ProtocolError as error:
            self._refuse(error)
            return
        self._take(frame.sequence, stream_time, lambda: self._inbox.put_frame(frame, stream_time))

    def receive_question(self, question: Question) -> None:
        """Ask; one whose id has come already is not asked again."""
        if question.id in self._known_questions or self._end_reason is not None:
            return
        if not question.text.strip():
            self.object(ErrorCode.QUESTION_INVALID, "the question is empty", question.id)
        elif self._inbox.put_question(question):
            self._known_questions.append(question.id)
        else:
            self.object(ErrorCode.QUESTION_TOO_MANY, "wait for the answers to earlier questions", question.id)

    def update(self, wanted: SessionUpdate) -> None:
        if wanted.fps is not UNSET and wanted.fps != self._fps:
            self._fps, self._sampler = wanted.fps, Sampler(wanted.fps)
        if wanted.threshold is not UNSET:
            self._threshold = wanted.threshold
        if wanted.events is not UNSET:
            self.outbox.wanted = wanted.events

    def reset(self) -> None:
        """Forget the stream, unless it is about to end."""
        if self._end_reason is not None:
            return
        self._drop(self._inbox.clear())
        self._known_questions.clear()  # of those that waited none is answered
        self._begin_stream()
        self._sampler = Sampler(self._fps)
        self._inbox.put_command(Command.RESET)

    def end(self, reason: EndReason) -> None:
        """Take no more, and end once what waits is dealt with."""
        if self._end_reason is None:
            self._end_reason = reason
            self._inbox.put_command(Command.END)

    def _begin_stream(self) -> None:
        self._origin: float | None = None
        self._last_time = -math.inf

    def _place(self, sequence: int, moment: float) -> float:
        """A frame's time in the stream. Raises ProtocolError."""
        if self.last_sequence is not None and sequence <= self.last_sequence:
            reason = f"frame {sequence} after frame {self.last_sequence}"
            raise ProtocolError(ErrorCode.FRAME_OUT_OF_ORDER, reason, sequence)
        self.last_sequence = sequence
        if moment < self._last_time:
            reason = f"frame {sequence} is older than the one before; session.reset begins a new clock"
            raise ProtocolError(ErrorCode.FRAME_OUT_OF_ORDER, reason, sequence)
        if self._origin is None:
            self._origin = moment
        self._last_time = moment
        self._newest_time = round(moment - self._origin, 6)
        return self._newest_time

    def _take(self, sequence: int, stream_time: float, put: Callable[[], WaitingFrame | None]) -> None:
        """Have a frame put into the inbox, if it is one to be looked at."""
        if self._end_reason is not None:
            self._done([sequence], "dropped")
        elif not self._sampler.takes(stream_time):
            self._done([sequence], "skipped")
        elif (dropped := put()) is not None:
            self._drop([dropped])

    def _drop(self, frames: list[WaitingFrame]) -> None:
        if not frames:
            return
        self._done([frame.sequence for frame in frames], "dropped")
        self._unannounced_drops += len(frames)
        if time.monotonic() >= self._next_notice:
            self._next_notice = time.monotonic() + NOTICE_SECONDS
            self._announce_drops()

    def _announce_drops(self) -> None:
        count, self._unannounced_drops = self._unannounced_drops, 0
        if not count:
            return
        text = f"{count} frame{'s' * (count > 1)} dropped: they come faster than the model reads"
        self._notice(NoticeCode.FRAMES_DROPPED, self._newest_time, text, count)
        self._untold.append(Event(self._newest_time, "notice", text))

    # What the engine's thread does

    @property
    def ready(self) -> bool:
        return self._inbox.ready and not self.over

    @property
    def over(self) -> bool:
        return self.ended.is_set()

    def next_script(self, session: Session, most_frames: int) -> Script | None:
        session.threshold = session.model.config.threshold if self._threshold is None else self._threshold
        self._spoken = ""
        while (waiting := self._inbox.take(most_frames)) is not None:
            match waiting:
                case ProtocolError():
                    self._refuse(waiting)
                case Question():
                    self._begin_journal(session)
                    try:
                        session.ask(waiting.text)
                    except ValueError as error:
                        self.object(ErrorCode.QUESTION_INVALID, str(error), waiting.id)
                        continue
                    self._asked = waiting
                    session.on_text = lambda text: self._tell_answer(waiting.id, session.time, text)
                    return session.ending()
                case Command.RESET:
                    self._end_journal(session)
                    session.reset()
                    self._has_begun, self._read_sequence = False, None
                    self._notice(NoticeCode.SESSION_RESET, 0.0, "the stream begins anew")
                case Command.END:
                    self._announce_drops()
                    self._tell_journal(session)
                    self._finish(self._end_reason or EndReason.CLIENT)
                    return None
                case Notice():
                    self._notice(waiting.code, waiting.start, waiting.text)
                case _:
                    self._begin_journal(session)
                    self._tell_journal(session)
                    self._reading = waiting
                    session.on_text = lambda text: self._tell_narration(session.time, text)
                    return session.watching(
                        *[Frame(frame.time, frame.pixels.result()) for frame in self._reading]
                    )
        return None

    def said(self, events: list[Event]) -> None:
        for event in events:
            if event.kind == "narration":
                self._narrations += 1
                self._metrics.events.labels("narration").inc()
                sequence, end = self._frame_at(event.time).sequence, max(event.time, self._newest_time)
                self.outbox.keep(
                    Narration(UNNUMBERED, _narration_id(sequence), sequence, event.time, end, event.text)
                )
            elif event.kind == "answer" and self._asked is not None:
                self._answers += 1
                self._metrics.events.labels("answer").inc()
                asked, end = self._asked, max(event.time, self._newest_time)
                self.outbox.keep(
                    Answer(
                        UNNUMBERED,
                        asked.id,
                        event.time,
                        end,
                        asked.text,
                        event.text,
                        self._read_sequence,
                        event.evidence,
                    )
                )
            elif isinstance(event, JournalNotice):
                assert self._journals is not None
                text = event.text.replace(f"{self._journals.folder}/", "")  # no client's business
                self._notice(NoticeCode.JOURNAL_CHANGED, event.time, text)
            elif event.kind == "notice":
                self._notice(NoticeCode.CONTEXT_FULL, event.time, event.text)
        self._asked = None
        if self._reading:
            self._read(self._reading)
            self._reading = []

    def _begin_journal(self, session: Session) -> None:
        """Before the first frame or question: give the stream a journal of its own."""
        if self._has_begun or self._journals is None:
            return
        self._has_begun = True
        try:
            session.reset(self._journals.begin(self.id))
        except (JournalError, OSError) as error:
            log.warning("session %s has no journal: %s", self.id, error)
            text = "the stream goes on without a journal, which can't be begun; the server's log says why"
            self._notice(NoticeCode.JOURNAL_CHANGED, session.time, text)

    def _tell_journal(self, session: Session) -> None:
        """What was announced on the event loop's thread."""
        while self._untold:
            self.said(session.tell(self._untold.popleft())[1:])

    def _end_journal(self, session: Session) -> None:
        self._tell_journal(session)
        if session.journal is not None:
            session.journal.close()

    def failed(self) -> None:
        message = "the model failed on this stream; start a new session"
        self.outbox.tell(ServerError(UNNUMBERED, ErrorCode.SERVER_ERROR, message, fatal=True))
        self._finish(EndReason.ERROR)

    def _read(self, frames: list[WaitingFrame]) -> None:
        now = time.monotonic()
        for frame in frames:
            self._latencies.append(now - frame.received)
            self._metrics.latency.observe(now - frame.received)
        self._read_sequence = frames[-1].sequence
        self._done([frame.sequence for frame in frames], "read")

    def _finish(self, reason: EndReason) -> None:
        self._announce_drops()
        self.outbox.keep(SessionEnded(UNNUMBERED, reason, self.figures()))
        self.ended.set()

    def _frame_at(self, moment: float) -> WaitingFrame:
        """The frame in hand that has this time."""
        return next(frame for frame in reversed(self._reading) if frame.time <= moment)

    def _tell_narration(self, moment: float, text: str) -> None:
        if new := self._new_words(moment, text):
            sequence = self._frame_at(moment).sequence
            self.outbox.tell(NarrationDelta(UNNUMBERED, _narration_id(sequence), sequence, moment, new))

    def _tell_answer(self, question_id: str, moment: float, text: str) -> None:
        if new := self._new_words(moment, text):
            self.outbox.tell(AnswerDelta(UNNUMBERED, question_id, moment, new))

    def _new_words(self, moment: float, text: str) -> str:
        """What has come to a reply since the last time; nothing while a letter is half there."""
        if text.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        before = self._spoken if moment == self._spoken_at and text.startswith(self._spoken) else ""
        self._spoken, self._spoken_at = text, moment
        return text[len(before) :]

    # Both

    def figures(self) -> Figures:
        totals, latencies = self.outbox.totals, sorted(self._latencies)
        return Figures(
            seconds=self._newest_time,
            frames_received=self._received,
            frames_read=totals.read,
            frames_skipped=totals.skipped,
            frames_dropped=totals.dropped,
            frames_refused=totals.refused,
            narrations=self._narrations,
            answers=self._answers,
            latency_median_ms=1e3 * statistics.median(latencies) if latencies else None,
            latency_p95_ms=1e3 * latencies[math.ceil(0.95 * len(latencies)) - 1] if latencies else None,
        )

    def _done(self, sequences: list[int], outcome: str) -> None:
        self._metrics.frames.labels(outcome).inc(len(sequences))
        self.outbox.acknowledge(max(sequences), gives_credit=self.credits > 0, **{outcome: len(sequences)})

    def _notice(self, code: NoticeCode, moment: float, text: str, count: int = 0) -> None:
        self._metrics.events.labels("notice").inc()
        self.outbox.keep(Notice(UNNUMBERED, code, moment, text, count))

    def _refuse(self, error: ProtocolError) -> None:
        """A frame is not taken."""
        self._metrics.errors.labels(error.code).inc()
        self.outbox.tell(ServerError(UNNUMBERED, error.code, str(error), sequence=error.sequence))
        self._done([self.last_sequence or 0 if error.sequence is None else error.sequence], "refused")

    def object(self, code: ErrorCode, message: str, id: str | None = None) -> None:
        """Tell the client that a message of its, or the question of that id, is not taken."""
        self._metrics.errors.labels(code).inc()
        self.outbox.tell(ServerError(UNNUMBERED, code, message, id=id))


def _narration_id(sequence: int) -> str:
    return f"n{sequence}"
