"""Files, network addresses and pipes, decoded by FFmpeg through PyAV."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.error import FFmpegError
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from stream.frames import Frame
from stream.sources.base import Source, SourceError
from stream.sources.damage import cut_short, describe
from stream.sources.opening import (
    CHECK_MEDIA,
    declared_duration,
    display_name,
    is_address,
    open_container,
    pick_video,
    timeline_of,
)
from stream.sources.sampling import Sampler, lies_between_ticks
from stream.sources.square import fit_size

# Each decoding thread holds back one frame; a live picture should not be late by as many as there are cores.
LIVE_THREADS = 4


class PyAVSource(Source):
    """A media file, a network address, or "-": a pipe on standard input."""

    def __init__(self, uri: str, fps: float, max_side: int | None) -> None:
        super().__init__()
        self.name = display_name(uri)
        self._path = Path(uri)
        self._fps = fps
        self._max_side = max_side
        self._reformatter = VideoReformatter()
        self._container = open_container(uri)
        try:
            self._stream = pick_video(self._container, self.name)
        except SourceError:
            self._container.close()
            raise
        self.duration = declared_duration(self._container, self._stream)
        # A film behind http:// waits for its reader; a camera behind rtsp:// does not.
        self.live = is_address(uri) and (self.duration is None or uri.startswith("rtsp"))
        self._steady_rate = steady_rate(self._stream)
        self._time: float | None = None
        self._end = 0.0
        self._damaged_at: float | None = None
        self._broken_off = False

    def _frames(self) -> Iterator[Frame]:
        self._stream.thread_type = "AUTO"
        if self.live:
            self._stream.thread_count = LIVE_THREADS
        timeline = timeline_of(self._container, self._stream)
        sampler = Sampler(self._fps)
        time_base = self._stream.time_base
        for frame in self._decoded():
            # Not frame.time: PyAV leaves it undefined for the frames that a decoder gives back at the end.
            stamp = None if frame.pts is None or time_base is None else float(frame.pts * time_base)
            self._time = timeline.place(stamp)
            if frame.is_corrupt:
                self._note_damage()
            if sampler.takes(self._time):
                yield Frame(self._time, self._pixels(frame))
        if self._closed:
            return
        if self._time is None:
            raise SourceError(f"{self.name} has no picture that can be decoded; {CHECK_MEDIA}")
        self.problem = self._find_problem(self._time)

    def _decoded(self) -> Iterator[VideoFrame]:
        packets = self._container.demux()
        while not self._closed:
            try:
                packet = next(packets, None)
            except FFmpegError as error:
                if self.live:
                    raise SourceError(
                        f"{self.name} stopped delivering pictures; check the camera and the network"
                    ) from error
                self._broken_off = True
                packet = None
            if packet is None:
                yield from self._decode(None)
                return
            if packet.pts is not None:
                self._end = max(self._end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream_index == self._stream.index and packet.size:
                # A picture that no other one refers to and that no tick falls on need not be decoded.
                self._stream.codec_context.skip_frame = (
                    "NONREF" if self._is_passed_over(packet) else "DEFAULT"
                )
                yield from self._decode(packet)

    def _is_passed_over(self, packet: Packet) -> bool:
        if self._steady_rate is None or packet.pts is None:
            return False
        time = float((packet.pts - (self._stream.start_time or 0)) * packet.time_base)
        return lies_between_ticks(time, self._fps, 1 / self._steady_rate)

    def _decode(self, packet: Packet | None) -> list[VideoFrame]:
        # One spoiled packet must not end a stream: from the next key frame on, all is sound again.
        try:
            return self._stream.decode(packet)
        except FFmpegError:
            self._note_damage()
            return []

    def _note_damage(self) -> None:
        if self._damaged_at is None:
            self._damaged_at = self._time or 0.0

    def _pixels(self, frame: VideoFrame) -> np.ndarray:
        width, height = fit_size(frame.width, frame.height, self._max_side)
        scaled = self._reformatter.reformat(frame, width, height, "rgb24", interpolation="AREA")
        return upright(scaled.to_ndarray(), frame)

    def _find_problem(self, last: float) -> str | None:
        if self.live:
            return None
        container = self._container
        declared = None if container.duration is None else container.duration / av.time_base
        cut = self._path.is_file() and cut_short(self._path, container.format.name, declared, self._end)
        return describe(self._broken_off or cut, last, self._damaged_at)

    def _release(self) -> None:
        self._container.close()


def steady_rate(stream: VideoStream) -> float | None:
    """Frames a second where the file's own index shows a constant rate, else None: declarations alone lie."""
    rate, duration = stream.average_rate, stream.duration
    if not rate or rate != stream.base_rate or not duration or stream.time_base is None:
        return None
    return float(rate) if abs(stream.frames - duration * stream.time_base * rate) < 1 else None


def upright(pixels: np.ndarray, frame: VideoFrame) -> np.ndarray:
    """[height, width, 3] as decoded -> as the display matrix of `frame` wants it shown, contiguous."""
    try:
        # [3, 3] in fixed point; a pixel (x, y) is shown at (a x + c y, b x + d y).
        side_data = cast("Mapping[str, bytes]", frame.side_data)
        matrix = np.frombuffer(side_data["DISPLAYMATRIX"], np.int32)
    except KeyError:
        return pixels
    except ValueError:  # PyAV cannot list side data of a kind it does not know, such as EXIF
        return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))
    a, b, c, d = matrix[0], matrix[1], matrix[3], matrix[4]
    if abs(b) > abs(a):
        pixels, a, d = pixels.transpose(1, 0, 2), c, b  # x and y change places: [width, height, 3]
    if a < 0:
        pixels = pixels[:, ::-1]
    if d < 0:
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
