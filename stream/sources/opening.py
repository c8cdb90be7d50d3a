"""Opens media for PyAV, and says in one line why it cannot."""

from __future__ import annotations

import io
import math
import re
import time
from pathlib import Path

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition
from av.video.stream import VideoStream

from stream.sources.base import SourceError
from stream.sources.sampling import Timeline

# fmt: off
CLIP_SUFFIXES = frozenset((
    ".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts",
    ".webm", ".wmv", ".y4m",
))
# fmt: on
OPEN_SECONDS = 5.0
STALL_SECONDS = 10.0
FALLBACK_FPS = 25.0
# In formats that get spliced (broadcasts), FFmpeg's own tools too take a jump of 10 s for a break, not a gap.
AVFMT_TS_DISCONT = 0x0200
SPLICED_GAP_SECONDS = 10.0
STANDARD_INPUT = "-"
CHECK_MEDIA = "check it with ffprobe, or pass another clip"


def is_address(uri: str) -> bool:
    """Whether `uri` names a stream on the network and not a file or a pipe."""
    return "://" in uri


def display_name(uri: str) -> str:
    """What to call `uri` in messages: a camera's address without its user and password."""
    if uri == STANDARD_INPUT:
        return "standard input"
    return re.sub(r"//[^/]*@", "//", uri) if is_address(uri) else Path(uri).name


def open_container(uri: str) -> InputContainer:
    """Open a file, an address, or standard input ("-"). Raises SourceError, after a few seconds at most."""
    name = display_name(uri)
    begin = time.monotonic()
    try:
        if uri == STANDARD_INPUT:
            return _open_standard_input()
        return _open_address(uri) if is_address(uri) else _open_file(Path(uri))
    except FFmpegError as error:
        waited = time.monotonic() - begin
        reason = _network_reason(error, waited) if is_address(uri) else _media_reason(error)
        raise SourceError(f"{name} {reason}") from error


def pick_video(container: InputContainer, name: str) -> VideoStream:
    """The main video stream. Raises SourceError when there is none, or no decoder for it."""
    stream = container.streams.best("video")
    # A text file without a known ending is "played" by FFmpeg as terminal art; a cover picture is no video.
    if not isinstance(stream, VideoStream) or container.format.name == "tty":
        raise SourceError(f"{name} has no video in it; pass a clip that has")
    if stream.disposition & Disposition.attached_pic:
        raise SourceError(f"{name} has no video in it, only sound and a cover picture; pass a clip that has")
    if stream.codec_context is None:
        raise SourceError(f"{name} uses a video codec that FFmpeg cannot decode; convert it to H.264 first")
    return stream


def declared_duration(container: InputContainer, stream: VideoStream) -> float | None:
    """Seconds of video, as the header says; None when it does not."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return None if container.duration is None else container.duration / av.time_base


def timeline_of(container: InputContainer, stream: VideoStream) -> Timeline:
    """A fresh timeline that suits the format and the frame rate of a stream."""
    spliced = container.format.flags & AVFMT_TS_DISCONT
    return Timeline(
        period=1 / float(stream.guessed_rate or FALLBACK_FPS),
        max_gap=SPLICED_GAP_SECONDS if spliced else math.inf,
    )


def _open_file(path: Path) -> InputContainer:
    if not path.exists():
        raise SourceError(f"{path} does not exist; check the path")
    if path.is_file() and path.stat().st_size == 0:
        raise SourceError(f"{path.name} is empty (0 bytes); copy or record it again")
    # Without the prefix FFmpeg takes "12:30.mp4" for an address.
    return av.open(f"file:{path}", mode="r", metadata_errors="replace")


def _open_address(uri: str) -> InputContainer:
    # TCP loses no packets; UDP is what is left for cameras that do not offer it.
    options = {"rtsp_flags": "prefer_tcp", "analyzeduration": "3000000"}
    return av.open(
        uri, mode="r", options=options, timeout=(OPEN_SECONDS, STALL_SECONDS), metadata_errors="replace"
    )


def _open_standard_input() -> InputContainer:
    try:
        # Unbuffered: a frame is read as soon as it is written, and no lock on sys.stdin is held at exit.
        pipe = io.FileIO(0, closefd=False)
    except OSError:  # closed
        pipe = None
    if pipe is None or pipe.isatty():
        raise SourceError("nothing is piped in; pipe a clip into standard input, or pass its path")
    return av.open(pipe, mode="r", metadata_errors="replace")


def _media_reason(error: FFmpegError) -> str:
    if isinstance(error, PermissionError):
        return "may not be read (permission denied); change its rights with chmod"
    return f"is no video that FFmpeg can read, or its recording was cut off; {CHECK_MEDIA}"


def _network_reason(error: FFmpegError, waited: float) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "refused the connection; check the address and port, and that the stream is running"
    # What FFmpeg reports when it is interrupted depends on how far it came.
    if waited >= OPEN_SECONDS or isinstance(error, TimeoutError):
        return f"did not answer within {OPEN_SECONDS:g} s; check the address and that the stream is running"
    if isinstance(error, av.error.ProtocolNotFoundError):
        return "is no kind of address that FFmpeg knows; use rtsp://, http://, https:// or udp://"
    return f"cannot be opened ({error.strerror}); check the address and the network"
