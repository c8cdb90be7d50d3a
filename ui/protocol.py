"""What client and server say to each other over the WebSocket: `ui/PROTOCOL.md` in types.

Text messages are JSON objects told apart by `type`; a binary message is one frame, a picture file behind a
header of 16 bytes.
"""

from __future__ import annotations

import struct
from enum import StrEnum
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from stream.frames import Evidence

VERSION = 1
PATH = "/v1/stream"
SUBPROTOCOL = "videollm.v1"

MAX_MESSAGE_BYTES = 64 * 1024
MAX_FRAME_BYTES = 8 * 2**20
MAX_PIXELS = 16_000_000
MAX_QUESTION_CHARS = 2000
MAX_SOURCE_CHARS = 64
MAX_TIME = 2.0**40

Fps = Annotated[float, Meta(gt=0, le=60)]
Threshold = Annotated[float, Meta(ge=0, le=1)]
Kind = Literal["narration", "narration.delta", "answer", "answer.delta", "notice"]
KINDS: frozenset[Kind] = frozenset({"narration", "narration.delta", "answer", "answer.delta", "notice"})


class ClientMessage(Struct, tag_field="type", forbid_unknown_fields=True, omit_defaults=True, frozen=True):
    """What a client says."""


class SessionStart(ClientMessage, tag="session.start", frozen=True):
    """The first message of every connection: a new session, or one that goes on (`resume_token`), with the
    settings that it has."""

    version: int = VERSION
    token: Annotated[str, Meta(max_length=512)] | None = None
    """The server's token, for clients that can't send the header `Authorization: Bearer`."""
    fps: Fps = 2.0
    """How many frames a second are looked at; those between are skipped."""
    threshold: Threshold | None = None
    """Speak when the model is less sure than this that nothing happens; the model's own where absent."""
    prompt: Annotated[str, Meta(min_length=1, max_length=MAX_QUESTION_CHARS)] | None = None
    """System prompt instead of the model's own."""
    events: frozenset[Kind] = KINDS
    """Which optional events are sent."""
    source: Annotated[str, Meta(min_length=1, max_length=MAX_SOURCE_CHARS)] | None = None
    """A source of the server's own, by its name in `/v1/sources`, instead of frames from the client."""
    resume_token: Annotated[str, Meta(max_length=128)] | None = None
    last_event_id: Annotated[int, Meta(ge=0)] = 0
    """With `resume_token`: the greatest event id seen; what came after it is sent anew."""


class Question(ClientMessage, tag="question", frozen=True):
    """A question about all frames sent before it."""

    id: Annotated[str, Meta(min_length=1, max_length=64)]
    text: Annotated[str, Meta(min_length=1, max_length=MAX_QUESTION_CHARS)]


class SessionUpdate(ClientMessage, tag="session.update", frozen=True):
    """Change what is given here, from the next frame on."""

    fps: Fps | UnsetType = UNSET
    threshold: Threshold | UnsetType | None = UNSET
    events: frozenset[Kind] | UnsetType = UNSET


class SessionReset(ClientMessage, tag="session.reset", frozen=True):
    """Forget the stream: its clock begins anew with the next frame. What waits is lost."""


class SessionEnd(ClientMessage, tag="session.end", frozen=True):
    """No frame and no question will follow: those that wait are dealt with, then the session ends."""


class ServerMessage(Struct, tag_field="type", omit_defaults=True, frozen=True):
    """What a server says. Times are seconds since the stream's first frame."""

    event_id: int
    """Grows from message to message of a session, not always by one; `session.started` has the client's
    `last_event_id`, and 0 in a new session."""


class Limits(Struct, frozen=True):
    frame_bytes: int
    """The longest binary message, header included."""
    frame_pixels: int
    message_bytes: int
    """The longest text message."""
    question_chars: int
    waiting_questions: int
    grace_seconds: float
    """How long a session waits for a client whose connection broke."""


class SessionStarted(ServerMessage, tag="session.started", frozen=True):
    """The answer to `session.start`. Missed events follow, where a session goes on."""

    version: int
    session_id: str
    resume_token: str
    model: str
    credits: int
    """How many frames may be sent before the first `frame.ack`; 0 where the server watches its own source."""
    limits: Limits
    resumed: bool = False
    last_sequence: int | None = None
    """The greatest sequence number received so far."""
    lost_events: bool = False
    """Some of the missed events are too old to be sent anew."""


class FrameAck(ServerMessage, tag="frame.ack", frozen=True):
    """All frames up to `sequence` are done with; each gives its credit back."""

    sequence: int
    """The newest of the frames that are done with."""
    credits: int
    """How many more frames may be sent: read + skipped + dropped + refused; 0 where they are the server's."""
    read: int = 0
    """The model has looked at them."""
    skipped: int = 0
    """Between two ticks of the session's `fps`."""
    dropped: int = 0
    """Newer ones came before the model had time for these."""
    refused: int = 0
    """An `error` has told why."""


class NarrationDelta(ServerMessage, tag="narration.delta", frozen=True):
    """A narration's next words, as they are found."""

    id: str
    sequence: int
    start: float
    text: str


class Narration(ServerMessage, tag="narration", frozen=True):
    """What happens in a frame: the whole text, whichever deltas came before."""

    id: str
    sequence: int
    """The frame after which it is said."""
    start: float
    """That frame's time."""
    end: float
    """The time of the newest frame that had come when the last word was found."""
    text: str


class AnswerDelta(ServerMessage, tag="answer.delta", frozen=True):
    """An answer's next words, as they are found."""

    id: str
    """The question's."""
    start: float
    text: str


class Answer(ServerMessage, tag="answer", frozen=True):
    """The answer to a question: the whole text, whichever deltas came before."""

    id: str
    """The question's."""
    start: float
    end: float
    question: str
    text: str
    sequence: int | None = None
    """The latest frame read before; None where there was none."""
    moments: tuple[Evidence, ...] = ()
    """Of the journal, that the answer was recalled from."""


class NoticeCode(StrEnum):
    FRAMES_DROPPED = "frames.dropped"
    CONTEXT_FULL = "context.full"
    SESSION_RESET = "session.reset"
    SOURCE_ENDED = "source.ended"
    SOURCE_FAILED = "source.failed"
    JOURNAL_CHANGED = "journal.changed"


class Notice(ServerMessage, tag="notice", frozen=True):
    """Something that the client should know, and need not act on."""

    code: NoticeCode
    start: float
    text: str
    count: int = 0
    """`frames.dropped`: how many since the last such notice."""


class ErrorCode(StrEnum):
    AUTH_REQUIRED = "auth.required"
    AUTH_WRONG = "auth.wrong"
    VERSION_UNSUPPORTED = "version.unsupported"
    START_EXPECTED = "start.expected"
    START_REPEATED = "start.repeated"
    START_TIMEOUT = "start.timeout"
    SERVER_FULL = "server.full"
    SERVER_SHUTDOWN = "server.shutdown"
    SERVER_ERROR = "server.error"
    SESSION_UNKNOWN = "session.unknown"
    SESSION_TAKEN = "session.taken"
    READER_SLOW = "reader.slow"
    MESSAGE_MALFORMED = "message.malformed"
    MESSAGE_INVALID = "message.invalid"
    MESSAGE_TOO_LARGE = "message.too_large"
    PROMPT_TOO_LONG = "prompt.too_long"
    QUESTION_INVALID = "question.invalid"
    QUESTION_TOO_MANY = "question.too_many"
    FRAME_MALFORMED = "frame.malformed"
    FRAME_TOO_LARGE = "frame.too_large"
    FRAME_OUT_OF_ORDER = "frame.out_of_order"
    FRAME_UNDECODABLE = "frame.undecodable"
    FRAME_UNEXPECTED = "frame.unexpected"
    SOURCE_UNKNOWN = "source.unknown"


class ServerError(ServerMessage, tag="error", frozen=True):
    """Something was refused; where `fatal`, the connection closes behind it."""

    code: ErrorCode
    message: str
    fatal: bool = False
    sequence: int | None = None
    """The frame in question."""
    id: str | None = None
    """The question in question."""


class EndReason(StrEnum):
    CLIENT = "client"
    SHUTDOWN = "server.shutdown"
    ERROR = "server.error"


class Figures(Struct, frozen=True):
    """What a session has come to."""

    seconds: float
    """Of the stream: the newest frame's time."""
    frames_received: int
    frames_read: int
    frames_skipped: int
    frames_dropped: int
    frames_refused: int
    narrations: int
    answers: int
    latency_median_ms: float | None
    """From a frame's coming in to its being read; None before the first."""
    latency_p95_ms: float | None


class CacheFigures(Struct, frozen=True):
    """What the key-value cache holds of a session now."""

    tokens: int
    """Read so far, and not forgotten."""
    capacity: int
    """The most that are remembered."""
    bytes: int
    """That its keys and values fill, all layers together."""
    kept: list[int]
    """How many of them each decoder layer stores: a mixture-of-depths layer only those that ran in it."""


class SessionEnded(ServerMessage, tag="session.ended", frozen=True):
    """The last message of a session."""

    reason: EndReason
    figures: Figures


class CloseCode:
    """WebSocket close codes: those of RFC 6455, and ours from 4000 on."""

    NORMAL = 1000
    GOING_AWAY = 1001
    INTERNAL = 1011
    TRY_LATER = 1013
    REFUSED = 4400
    UNAUTHORIZED = 4401
    SESSION_UNKNOWN = 4404
    START_TIMEOUT = 4408
    SESSION_TAKEN = 4409
    MESSAGE_TOO_LARGE = 4413
    READER_SLOW = 4429


AnyClientMessage = SessionStart | Question | SessionUpdate | SessionReset | SessionEnd
AnyServerMessage = (
    SessionStarted
    | FrameAck
    | NarrationDelta
    | Narration
    | AnswerDelta
    | Answer
    | Notice
    | ServerError
    | SessionEnded
)

_client_decoder = msgspec.json.Decoder(AnyClientMessage)


class ProtocolError(Exception):
    """A message is not what the protocol allows."""

    def __init__(self, code: ErrorCode, message: str, sequence: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.sequence = sequence


def parse_message(data: str | bytes) -> AnyClientMessage:
    """A client's text message. Raises ProtocolError."""
    raw = data.encode() if isinstance(data, str) else data
    if len(raw) > MAX_MESSAGE_BYTES:
        message = f"a message of {len(raw)} bytes; {MAX_MESSAGE_BYTES} are the most"
        raise ProtocolError(ErrorCode.MESSAGE_TOO_LARGE, message)
    try:
        return _client_decoder.decode(raw)
    except msgspec.ValidationError as error:
        raise ProtocolError(ErrorCode.MESSAGE_INVALID, str(error)) from error
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise ProtocolError(ErrorCode.MESSAGE_MALFORMED, f"not JSON: {error}") from error


class FrameFormat(StrEnum):
    JPEG = "JPEG"
    PNG = "PNG"
    WEBP = "WEBP"


HEADER = struct.Struct(">2sBBId")
"""Magic `VF`, format, flags (0), sequence u32, capture time f64 in seconds; big endian, 16 bytes."""
MAGIC = b"VF"
_FORMATS = {1: FrameFormat.JPEG, 2: FrameFormat.PNG, 3: FrameFormat.WEBP}
_NUMBERS = {format: number for number, format in _FORMATS.items()}


class EncodedFrame(Struct, frozen=True):
    """A picture file with its place in the stream."""

    format: FrameFormat
    sequence: int
    """u32; grows from frame to frame."""
    time: float
    """Seconds on any clock of the client's that never runs backward."""
    data: bytes

    def pack(self) -> bytes:
        """The binary message. Raises struct.error for a sequence number beyond u32."""
        return HEADER.pack(MAGIC, _NUMBERS[self.format], 0, self.sequence, self.time) + self.data


def parse_frame(message: bytes) -> EncodedFrame:
    """A binary message's frame, not yet decoded. Raises ProtocolError."""
    if len(message) <= HEADER.size:
        raise ProtocolError(
            ErrorCode.FRAME_MALFORMED, f"a frame has {HEADER.size} bytes of header, then data"
        )
    magic, number, flags, sequence, time = HEADER.unpack_from(message)
    if magic != MAGIC:
        raise ProtocolError(ErrorCode.FRAME_MALFORMED, "a frame begins with the bytes VF")
    if len(message) > MAX_FRAME_BYTES:
        reason = f"a frame of {len(message)} bytes; {MAX_FRAME_BYTES} are the most"
        raise ProtocolError(ErrorCode.FRAME_TOO_LARGE, reason, sequence)
    if number not in _FORMATS:
        reason = f"format {number} is unknown; 1 is JPEG, 2 PNG, 3 WebP"
    elif flags:
        reason = f"flags are {flags}; version {VERSION} knows none"
    elif not abs(time) < MAX_TIME:
        reason = f"the capture time is {time:g}; it is counted in seconds"
    else:
        return EncodedFrame(_FORMATS[number], sequence, time, message[HEADER.size :])
    raise ProtocolError(ErrorCode.FRAME_MALFORMED, reason, sequence)
