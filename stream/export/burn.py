"""A clip with its narration burnt into the picture."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer, OutputContainer
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image

from stream.export.caption import caption_band
from stream.export.cues import Cue, cues_of
from stream.frames import Event
from stream.sources import SourceError
from stream.sources.opening import CHECK_MEDIA, open_container, pick_video, timeline_of
from stream.sources.pyav import upright

# Narrower pictures are enlarged by a whole factor: no caption is readable on 64 pixels.
NARROWEST = 320
# MPEG-4 Part 2 counts no finer than 1/65535 s; 60000 ticks hold 24, 25, 29.97, 30 and 60 frames a second.
COARSER_TIME_BASE = Fraction(1, 60_000)
FINEST_DENOMINATOR = 65_535
FALLBACK_RATE = Fraction(25)


def burn(clip: Path, events: Iterable[Event], out: Path) -> None:
    """Write `clip` to `out` (.mp4, .mkv, .mov: a container for H.264) with the events as captions.

    Presentation times stay, counted from the first picture; the sound is copied where the container takes
    it, else left out. `out` appears when it is complete. Raises SourceError, av.FFmpegError or OSError.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.stem}.partial{out.suffix}")
    try:
        with open_container(str(clip)) as source, av.open(str(partial), "w") as target:
            _transcode(source, pick_video(source, clip.name), target, list(cues_of(events)))
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)


def _transcode(
    source: InputContainer, video: av.VideoStream, target: OutputContainer, cues: list[Cue]
) -> None:
    video.thread_type = "AUTO"
    audio = next(iter(source.streams.audio), None)
    encoder = _encoder(target, video)
    sound = _copied_sound(audio, target)
    captions = _Captions(cues)
    tick = encoder.codec_context.time_base or COARSER_TIME_BASE
    size: tuple[int, int] | None = None
    last = -1
    for item in _decoded(source, video, audio if sound else None):
        if isinstance(item, av.Packet):
            item.stream = sound
            target.mux(item)
            continue
        time, frame = item
        picture = _sized(upright(frame.to_ndarray(format="rgb24"), frame))
        if size is None:
            size = encoder.width, encoder.height = picture.shape[1], picture.shape[0]
            if aspect := video.sample_aspect_ratio:
                encoder.codec_context.sample_aspect_ratio = 1 / aspect if frame.rotation % 180 else aspect
        elif size != (picture.shape[1], picture.shape[0]):  # a stream may change its size on the way
            picture = np.asarray(Image.fromarray(picture).resize(size))
        burnt = av.VideoFrame.from_ndarray(captions.draw(picture, time), format="rgb24").reformat(
            format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
        )
        last = burnt.pts = max(round(time / tick), last + 1)  # encoders refuse times that stand still
        burnt.time_base = tick
        if frame.duration and video.time_base:
            burnt.duration = round(frame.duration * video.time_base / tick)
        target.mux(encoder.encode(burnt))
    if size is None:
        raise SourceError(f"{Path(source.name).name} has no picture that can be decoded; {CHECK_MEDIA}")
    target.mux(encoder.encode())


def _decoded(
    source: InputContainer, video: av.VideoStream, audio: av.AudioStream | None
) -> Iterator[tuple[float, av.VideoFrame] | av.Packet]:
    """Frames with their time as sources give it, and sound packets moved along with them."""
    timeline = timeline_of(source, video)
    tick = video.time_base
    start: float | None = None
    early: list[av.Packet] = []  # sound before the first picture, which says where time starts
    for packet in source.demux([stream for stream in (video, audio) if stream]):
        if packet.stream is audio:
            early.append(packet)
        else:
            for frame in _frames(packet):
                # Not frame.time, which PyAV leaves undefined for the frames that come out at the end.
                stamp = None if frame.pts is None or tick is None else float(frame.pts * tick)
                start = stamp or 0.0 if start is None else start
                yield timeline.place(stamp), frame
        if start is not None:
            yield from (_moved(sound, start) for sound in early if sound.dts is not None)
            early.clear()


def _frames(packet: av.Packet) -> list[av.VideoFrame]:
    try:
        return [frame for frame in packet.decode() if isinstance(frame, av.VideoFrame)]
    except av.FFmpegError:
        return []  # a damaged packet costs its picture, not the clip


def _moved(sound: av.Packet, start: float) -> av.Packet:
    """The packet with its times counted from `start` seconds."""
    shift = round(start / sound.time_base)
    sound.dts = (sound.dts or 0) - shift
    sound.pts = None if sound.pts is None else sound.pts - shift
    return sound


def _copied_sound(audio: av.AudioStream | None, target: OutputContainer) -> av.AudioStream | None:
    if audio is None or audio.codec_context.codec.canonical_name not in target.supported_codecs:
        return None
    return target.add_stream_from_template(audio)


def _encoder(target: OutputContainer, source: av.VideoStream) -> av.VideoStream:
    rate = source.average_rate or FALLBACK_RATE
    if "libx264" in av.codecs_available:
        encoder = target.add_stream("libx264", rate=rate, options={"preset": "veryfast", "crf": "20"})
    else:
        encoder = target.add_stream("mpeg4", rate=rate, options={"qscale": "4"})
    context = encoder.codec_context
    context.pix_fmt = "yuv420p"
    context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
    tick = source.time_base
    context.time_base = tick if tick and tick.denominator <= FINEST_DENOMINATOR else COARSER_TIME_BASE
    return encoder


def _sized(pixels: np.ndarray) -> np.ndarray:
    """[height, width, 3], enlarged if too small for a caption, and with even sides as yuv420p needs."""
    factor = -(-NARROWEST // pixels.shape[1])
    if factor > 1:
        pixels = pixels.repeat(factor, axis=0).repeat(factor, axis=1)
    height, width = pixels.shape[:2]
    return np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


class _Captions:
    """Draws the caption of the moment; a band is rendered once for as long as it shows."""

    def __init__(self, cues: list[Cue]) -> None:
        self._cues = cues
        self._next = 0
        self._band: tuple[Cue, Image.Image] | None = None

    def draw(self, pixels: np.ndarray, time: float) -> np.ndarray:
        """The picture with its caption; times must not go back."""
        while self._next < len(self._cues) and self._cues[self._next].end <= time:
            self._next += 1
        if self._next == len(self._cues) or time < self._cues[self._next].start:
            return np.ascontiguousarray(pixels)
        cue = self._cues[self._next]
        height, width = pixels.shape[:2]
        if self._band is None or self._band[0] is not cue:
            self._band = cue, caption_band(cue.lines, width, height)
        band = self._band[1]
        picture = Image.fromarray(pixels)
        picture.paste(band, (0, height - band.height), band)
        return np.asarray(picture)
