"""The journal: what was committed is there after any end, it keeps to its size, and no file is lost to it."""

from __future__ import annotations

import random
import resource
import signal
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import small_model
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.frames import Event, Evidence, Frame
from stream.journal import LEAST_SIZE, Journal, JournalError, JournalReader
from stream.journal.keeping import MOST_SECONDS, Keeper
from stream.journal.writer import Keepsake
from stream.session import Session


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kitchen.db"


def jpeg(size: int, seed: int = 0) -> bytes:
    """Bytes that don't compress, as a picture's."""
    return random.Random(seed).randbytes(size)


def keepsake(time: float, said: bool = False, size: int = 2000) -> Keepsake:
    return Keepsake(time, said, jpeg(size, int(time)), 7, np.arange(4, dtype=np.int8))


def narrations(count: int, start: float = 0.0) -> list[Event]:
    return [Event(start + index, "narration", f"Cup {index} appears.") for index in range(count)]


def frame_rows(journal: JournalReader) -> list[tuple[float, int]]:
    rows = journal._rows("SELECT time, said FROM frame ORDER BY time")
    (pictures,) = journal._rows("SELECT count(*) FROM picture")
    assert pictures == (len(rows),)  # none is left behind
    return rows


# Reading back


def test_what_is_written_reads_back(path: Path) -> None:
    events = [
        Event(0.5, "narration", "A cup — ☕ appears."),
        Event(2.0, "question", "Where?"),
        Event(2.0, "answer", "Left.", (Evidence(0.5, "A cup — ☕ appears."),)),
    ]
    with Journal(path) as journal:
        assert journal.record(events[:1], [keepsake(0.5, said=True)]) == []
        journal.record(events[1:])
        assert journal.events() == events
    with JournalReader(path) as reader:
        assert reader.events() == events
        assert reader.end == 2.0
        for weights, share in (([0, 0, 0, 1], 3), ([1, 0.5, 1, 0], 2), ([1, 0, 0, 0], 0)):
            times, shares = reader.sights(7, np.array(weights, np.float32), 0, 1)
            assert (times.tolist(), shares.tolist()) == ([0.5], [share])
        times, shares = reader.sights(8, np.ones(4, np.float32), 0, 1)
        assert len(times) == len(shares) == 0


def test_text_that_no_encoding_holds_is_kept_legibly(path: Path) -> None:
    with Journal(path) as journal:
        assert journal.record([Event(0, "question", "a\udcffb\0c")]) == []
        assert journal.events()[0].text == "a\\udcffb\0c"


def test_a_second_run_goes_on_behind_the_first(path: Path) -> None:
    with Journal(path, source="camera:0") as journal:
        assert journal.start == 0
        journal.record([Event(7.25, "narration", "A cup appears.")])
    with Journal(path) as journal:
        assert journal.start == 8
        journal.record([Event(journal.start + 1, "narration", "A cat appears.")])
        assert [event.time for event in journal.events()] == [7.25, 9]
        assert [row[0] for row in journal._rows("SELECT source FROM run ORDER BY id")] == ["camera:0", ""]


@given(st.text(max_size=60))
@settings(max_examples=60, deadline=None)
def test_nothing_in_a_search_is_syntax(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder) / "journal") as journal:
        journal.record(narrations(3))
        assert all(said.text.startswith("Cup") for said in journal.search(text, 0, 10, 5))


@pytest.mark.parametrize(
    "text", ['"', 'cup" OR text:*', "cup AND (", "NEAR(cup, 2)", "cup*", "^cup", "'; DROP TABLE event; --"]
)
def test_odd_searches_find_their_words(text: str, path: Path) -> None:
    with Journal(path) as journal:
        journal.record(narrations(2))
        assert len(journal.search(text, 0, 10, 5)) == (2 if "cup" in text else 0)
        assert [said.time for said in journal.search("cups", 0.5, 10, 5)] == [1]  # another form of the word
        assert len(journal.events()) == 2


# Two processes


def test_readers_read_beside_the_writer_and_a_second_writer_is_refused(path: Path) -> None:
    code = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from stream.journal import Journal, JournalError, JournalReader
        path = Path(sys.argv[1])
        with JournalReader(path) as reader:
            print(len(reader.events()))
        try:
            Journal(path)
        except JournalError as error:
            print(error)
        """
    )
    with Journal(path) as journal:
        for count in (1, 2):
            journal.record(narrations(1, start=count))
            done = subprocess.run(
                [sys.executable, "-c", code, path], capture_output=True, text=True, timeout=60
            )
            counted, refused = done.stdout.splitlines()
            assert counted == str(count), done.stderr
            assert "is being written by another program" in refused
    with Journal(path) as journal:  # free again
        assert journal.record(narrations(1, start=9)) == []


def test_a_reader_that_holds_on_keeps_the_journal_within_its_size(path: Path) -> None:
    with Journal(path, LEAST_SIZE) as journal:
        journal.record(narrations(1))
        reader = sqlite3.connect(path, isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM event").fetchall()
        notices = []
        for time in range(1, 300):
            notices += journal.record(narrations(1, start=time), [keepsake(time, size=20_000)])
            assert journal.nbytes() <= LEAST_SIZE
        assert len(notices) == 1 and "holds on to its log" in notices[0].text
        reader.close()
        (notice,) = journal.record(narrations(1, start=300))
        assert notice.text == "the journal goes on"
        assert [event.time for event in journal.events()] == list(range(301))


# Killed


WRITES = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    import numpy as np
    from stream.frames import Event
    from stream.journal import Journal
    from stream.journal.writer import Keepsake
    with Journal(Path(sys.argv[1]), 4_000_000) as journal:
        for number in range(10**9):
            time = journal.start + number
            picture = np.random.default_rng(number).bytes(9000)
            frame = Keepsake(time, number % 2 == 0, picture, 0, np.zeros(3, np.int8))
            journal.record([Event(time, "narration", f"{number}")], [frame])
            print(time, flush=True)
    """
)


@given(st.lists(st.floats(0, 0.4), min_size=1, max_size=2))
@settings(max_examples=3, deadline=None)
def test_a_kill_at_any_moment_loses_nothing_committed(delays: list[float]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, told = Path(folder) / "journal", []
        for delay in delays:
            with subprocess.Popen(
                [sys.executable, "-c", WRITES, path], stdout=subprocess.PIPE, text=True
            ) as process:
                assert process.stdout is not None
                told.append(float(process.stdout.readline()))
                time.sleep(delay)
                process.send_signal(signal.SIGKILL)
                told += [float(line) for line in process.stdout.read().splitlines() if line.endswith(".0")]
        with JournalReader(path) as reader:
            assert set(told) <= {event.time for event in reader.events()}
        with Journal(path) as journal:
            assert journal.problem is None
            assert set(told) <= {event.time for event in journal.events()}
            assert journal.start >= max(told)


# Its size


@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("write"), st.integers(0, 6), st.integers(0, 6), st.integers(100, 40_000)),
            st.tuples(st.just("reopen"), st.sampled_from([LEAST_SIZE, 5_000_000])),
        ),
        min_size=1,
        max_size=12,
    ),
    burst=st.integers(1, 12),
)
@settings(max_examples=20, deadline=None)
def test_whatever_is_written_the_journal_keeps_to_its_size_and_to_its_events(
    steps: list[tuple], burst: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, size, clock, events = Path(folder) / "journal", LEAST_SIZE, 0.0, []
        journal = Journal(path, size)
        for step in steps:
            if step[0] == "reopen":
                journal.close()
                size = step[1]
                journal = Journal(path, size)
                clock = max(clock, journal.start)
            else:
                _, plain, said, picture = step
                for _ in range(burst):
                    new = [Event(clock + index, "narration", f"at {clock + index}") for index in range(said)]
                    frames = [
                        keepsake(clock + index, index < said, picture) for index in range(max(plain, said))
                    ]
                    assert journal.record(new, frames) == []
                    events += new
                    clock += 7
            assert journal.nbytes() <= size
            kept = frame_rows(journal)
            if kept:
                assert journal.events() == events  # none goes while a frame is there
            times = [event.time for event in journal.events()]
            assert times == sorted(times)
        journal.close()
        with JournalReader(path) as reader:
            assert frame_rows(reader) == kept


def test_old_frames_grow_thin_and_those_beside_events_stay(path: Path) -> None:
    with Journal(path, LEAST_SIZE) as journal:
        for time in range(1000):
            said = time % 20 == 0
            journal.record(narrations(1, start=time) if said else [], [keepsake(time, said, 10_000)])
        kept = frame_rows(journal)
        assert [time for time, said in kept if said] == list(range(0, 1000, 20))
        plain = np.array([time for time, said in kept if not said])
        old, new = (plain < 500).sum(), (plain >= 500).sum()
        assert 0 < old < new
        assert plain[-10:].tolist() == [time for time in range(985, 1000) if time % 20][-10:]
        assert len(journal.events()) == 50


def test_events_are_the_last_to_go(path: Path) -> None:
    with Journal(path, LEAST_SIZE) as journal:
        journal.record([], [keepsake(0.0, said=True)])
        words = random.Random(0)
        for time in range(1500):
            text = " ".join(f"{words.randrange(10_000)}" for _ in range(400))
            assert journal.record([Event(time, "narration", text)]) == []
            assert journal.nbytes() <= LEAST_SIZE
        left = [event.time for event in journal.events()]
        assert frame_rows(journal) == []
        assert 100 < len(left) < 1500 and left == list(range(1500 - len(left), 1500))


def test_a_journal_that_may_take_less_than_before_gives_room_back(path: Path) -> None:
    with Journal(path, 4 * LEAST_SIZE) as journal:
        for time in range(600):
            journal.record(narrations(1, start=time), [keepsake(time, size=20_000)])
        assert journal.nbytes() > 2 * LEAST_SIZE
    with Journal(path, LEAST_SIZE) as journal:
        assert journal.nbytes() <= LEAST_SIZE
        assert len(journal.events()) == 600
    with pytest.raises(ValueError, match=f"at least {LEAST_SIZE} bytes"):
        Journal(path, LEAST_SIZE - 1)


# A full disk


@pytest.fixture
def full_disk(path: Path) -> Iterator[None]:
    """Files of this process can't grow past a megabyte, until the limit is lifted."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_without_room_pauses_the_journal_and_loses_no_event(path: Path, full_disk: None) -> None:
    with Journal(path, 100 * LEAST_SIZE) as journal:
        notices = []
        for time in range(200):
            notices += journal.record(narrations(1, start=time), [keepsake(time, size=20_000)])
        (notice,) = notices
        assert notice.kind == "notice" and notice.text.startswith("the journal pauses at 00:")
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        (notice,) = journal.record(narrations(1, start=200), [keepsake(200)])
        assert notice.text == "the journal goes on"
        assert journal.record([], [keepsake(201)]) == []
    with JournalReader(path) as reader:
        assert [event.time for event in reader.events()] == list(range(201))
        assert frame_rows(reader)[-1][0] == 201


# Files that are no journal, or no whole one


def read_all(path: Path) -> None:
    with JournalReader(path) as reader:
        reader.events()
        reader.frame_at(49)


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "cut":
        data = data[: len(data) // 2]
    elif how == "cut short":
        data = data[:60]
    else:
        data[4096:] = jpeg(len(data) - 4096)
    path.write_bytes(data)


@pytest.mark.parametrize("how", ["cut", "cut short", "overwritten"])
def test_a_damaged_journal_is_put_aside_and_a_new_one_begun(how: str, path: Path) -> None:
    with Journal(path) as journal:
        journal.record(narrations(50), [keepsake(time, size=20_000) for time in range(50)])
    damage(path, how)
    damaged = path.read_bytes()
    with pytest.raises(JournalError, match="is damaged"):
        read_all(path)
    with Journal(path) as journal:
        (notice,) = journal.record([Event(0, "narration", "A cup appears.")])
        assert "damaged" in notice.text and "kitchen.db.damaged-20" in notice.text
        assert [event.kind for event in journal.events()] == ["notice", "narration"]
    (aside,) = path.parent.glob("kitchen.db.damaged-*")
    assert aside.read_bytes() == damaged


def test_other_files_are_refused_and_left_alone(tmp_path: Path) -> None:
    files = {"notes.txt": b"no journal", "zeros": bytes(9000), "clip.mp4": b"\0\0\0\x18ftypmp42" * 9}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        for opens in (Journal, JournalReader):
            with pytest.raises(JournalError, match=f"{name} is not a journal; name another file"):
                opens(tmp_path / name)
        assert (tmp_path / name).read_bytes() == data
    other = sqlite3.connect(tmp_path / "other.db")
    other.execute("CREATE TABLE mine (x)")
    other.close()
    for opens in (Journal, JournalReader):
        with pytest.raises(JournalError, match="another program's database"):
            opens(tmp_path / "other.db")
    with pytest.raises(JournalError, match="there is no journal"):
        JournalReader(tmp_path / "nothing")
    with pytest.raises(OSError, match="notes"):
        Journal(tmp_path / "notes.txt" / "journal")


def test_a_journal_of_another_version_is_refused_and_left_alone(path: Path) -> None:
    with Journal(path) as journal:
        journal.record(narrations(1))
    newer = sqlite3.connect(path)
    newer.execute("PRAGMA user_version = 9")
    newer.close()
    for opens in (Journal, JournalReader):
        with pytest.raises(JournalError, match="journal of version 9, and this program reads version 1"):
            opens(path)
    assert list(path.parent.glob("*.damaged-*")) == []


@pytest.mark.parametrize("size", [0, 1, 15])
def test_what_a_kill_left_of_a_beginning_is_begun_anew(size: int, path: Path) -> None:
    path.write_bytes(b"SQLite format 3\0"[:size])
    with Journal(path) as journal:
        journal.record(narrations(1))
        assert len([event for event in journal.events() if event.kind == "narration"]) == 1


# Which frames are kept


def still(time: float, grey: int) -> Frame:
    return Frame(time, np.full((24, 32, 3), grey, np.uint8))


def test_frames_are_kept_where_something_is_said_or_changed_and_now_and_then(path: Path) -> None:
    with Journal(path) as journal:
        keeper = Keeper(small_model(), journal)
        greys = [60] * 10 + [200] * 60
        for index, grey in enumerate(greys):
            said = [Event(index / 2, "narration", "It moves.")] if index == 21 else []
            keeper.record(said, [still(index / 2, grey)])
        rows = frame_rows(journal)
        assert rows == [(0, 0), (5, 0), (10.5, 1), (10.5 + MOST_SECONDS, 0), (10.5 + 2 * MOST_SECONDS, 0)]
        keeper.record([Event(34.5, "question", "Now?"), Event(34.5, "answer", "Yes.")], [])
        assert frame_rows(journal)[-1] == (34.5, 1)
        frame = journal.frame_at(7)
        assert frame is not None and frame.time == 5
        assert abs(int(frame.picture.mean()) - 200) < 3 and frame.picture.shape == (24, 32, 3)


def test_a_session_hands_its_journal_what_it_says(path: Path) -> None:
    model = small_model()
    with Journal(path) as journal:
        session = Session(model, threshold=0.0, journal=journal)
        session.ask("Now?", time=1.0)
        rng = np.random.default_rng(0)
        frames = [Frame(index / 2, rng.integers(0, 256, (24, 32, 3), np.uint8)) for index in range(6)]
        said = [*session.step(*frames[:2]), *session.step(*frames[2:])]
        session.ask("And then?")
        said += session.finish()
        assert [event.kind for event in said] == ["question", "answer"] * 2
        assert journal.events() == said
        assert {time for time, was_said in frame_rows(journal) if was_said} == {1.0, 2.5}
        # Without a journal the same is said.
        plain = Session(model, threshold=0.0)
        plain.ask("Now?", time=1.0)
        again = plain.step(*frames)
        plain.ask("And then?")
        assert [*again, *plain.finish()] == said
