"""Pictures and clips that requests carry or name, as frames; nothing is fetched from the network."""

from __future__ import annotations

import base64
import binascii
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from stream.frames import Frame
from stream.sources import SourceError, open_source
from ui.decoding import decode_picture
from ui.protocol import MAX_FRAME_BYTES, FrameFormat, ProtocolError

FPS = 2.0
MOST_SECONDS = 600.0


class MediaError(Exception):
    """A picture or clip is not taken; the message is one line that says why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def picture_frame(url: str, time: float, max_side: int) -> Frame:
    """The picture in a data: URL. Raises MediaError."""
    data = _data_of(url)
    if len(data) > MAX_FRAME_BYTES:
        raise MediaError("frame.too_large", f"a picture has at most {MAX_FRAME_BYTES} bytes")
    try:
        return Frame(time, decode_picture(data, tuple(FrameFormat), max_side))
    except ProtocolError as error:
        raise MediaError(error.code, str(error)) from error


def clip_frames(url: str, start: float, max_side: int, folders: Sequence[Path]) -> Iterator[Frame]:
    """`FPS` frames a second of the clip in a data: URL, or in a file:// URL inside one of the folders, timed
    from `start` on. Raises MediaError."""
    if url.startswith("data:"):
        data = _data_of(url)
        if not _is_clip(data):
            raise MediaError("clip.unsupported", "a clip is MP4, MOV, WebM, Matroska, AVI, MPEG-TS or GIF")
        with tempfile.NamedTemporaryFile(suffix=".clip") as file:
            file.write(data)
            file.flush()
            yield from _frames(Path(file.name), start, max_side)
    else:
        yield from _frames(allowed_path(url, folders), start, max_side)


def allowed_path(url: str, folders: Sequence[Path]) -> Path:
    """The file that a file:// URL names. Raises MediaError unless it lies in one of the folders."""
    parts = urlsplit(url)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
        raise MediaError(
            "url.refused", "give a data: URL, or a file:// URL of a folder that the server allows"
        )
    try:
        path = Path(unquote(parts.path)).resolve()
        inside = any(path.is_relative_to(folder.resolve()) for folder in folders) and path.is_file()
    except (OSError, ValueError, RuntimeError):  # too long, a zero byte, a circle of links
        inside = False
    if not inside:  # the same words, whether it is there or not
        raise MediaError("path.refused", "there is no such file in the folders that the server allows")
    return path


def _frames(path: Path, start: float, max_side: int) -> Iterator[Frame]:
    try:
        with open_source(str(path), FPS, max_side=max_side) as source:
            for frame in source:
                if frame.time > MOST_SECONDS:
                    raise MediaError("clip.too_long", f"a clip has at most {MOST_SECONDS:g} s")
                yield Frame(start + frame.time, frame.pixels)
    except SourceError as error:
        raise MediaError("clip.unreadable", str(error)) from error


def _data_of(url: str) -> bytes:
    header, comma, body = url.partition(",")
    if not (header.startswith("data:") and comma):
        raise MediaError("url.refused", "give a data: URL; nothing is fetched from the network")
    if not header.endswith(";base64"):
        raise MediaError("url.malformed", "a data: URL has to be in base64")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise MediaError("url.malformed", f"a data: URL's base64 is damaged: {error}") from error


def _is_clip(data: bytes) -> bool:
    """By its first bytes: playlists and other texts that name further files are none."""
    return (
        data[4:8] == b"ftyp"
        or data[:4] == b"\x1aE\xdf\xa3"
        or (data[:4] == b"RIFF" and data[8:12] == b"AVI ")
        or data[:6] in (b"GIF87a", b"GIF89a")
        or (data[:1] == data[188:189] == b"G")
    )
