"""A folder of journals keeps to its size, and lets go of the oldest."""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.frames import Event
from stream.journal import LEAST_SIZE, Journal, JournalFolder
from stream.journal.writer import Keepsake

NAMES = [f"{number:016x}" for number in range(100)]


def keepsake(time: float, size: int) -> Keepsake:
    return Keepsake(time, False, os.urandom(size), 0, np.zeros(0, np.int8))


def nbytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def make(folder: JournalFolder, name: str, written: float, size: int = 0) -> None:
    """A journal that ended at a time."""
    with folder.begin(name) as journal:
        journal.record([Event(1, "narration", f"of {name}")], [keepsake(1, size)] if size else [])
    os.utime(folder.folder / f"{name}.db", (written, written))


def test_a_stream_begun_anew_has_another_file_and_all_are_read_in_order(tmp_path: Path) -> None:
    folder = JournalFolder(tmp_path, LEAST_SIZE, 100 * LEAST_SIZE)
    for part in range(1, 12):
        with folder.begin(NAMES[0]) as journal:
            journal.record([Event(0, "narration", str(part))])
    assert (tmp_path / f"{NAMES[0]}.db").exists() and (tmp_path / f"{NAMES[0]}-11.db").exists()
    assert [event.text for event in folder.events(NAMES[0])] == [str(part) for part in range(1, 12)]
    assert folder.events(NAMES[1]) == []


@pytest.mark.parametrize("name", ["../secret", "*", "", "0123456789abcdeF", "/etc/passwd", "secret"])
def test_nothing_else_is_read(tmp_path: Path, name: str) -> None:
    with Journal(tmp_path / "secret.db") as journal:
        journal.record([Event(0, "narration", "A secret.")])
    (tmp_path / "journals").mkdir()
    for place in (tmp_path, tmp_path / "journals"):
        assert JournalFolder(place, LEAST_SIZE, LEAST_SIZE).events(name) == []


def test_those_that_ended_longest_ago_go_first_and_those_that_are_written_stay(tmp_path: Path) -> None:
    folder = JournalFolder(tmp_path, LEAST_SIZE, 2 * LEAST_SIZE + 300_000)
    make(folder, NAMES[0], written=2000, size=100_000)
    make(folder, NAMES[1], written=1000, size=100_000)
    other = tmp_path / "cafe.db"
    other.write_bytes(bytes(LEAST_SIZE))
    with folder.begin(NAMES[2]):
        os.utime(tmp_path / f"{NAMES[2]}.db", (1, 1))
        with folder.begin(NAMES[3]):
            assert not list(tmp_path.glob(f"{NAMES[1]}*"))
            assert {path.name for path in tmp_path.glob("*.db")} == {
                "cafe.db",
                *(f"{NAMES[index]}.db" for index in (0, 2, 3)),
            }


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["begin", "write", "end"]), st.integers(0, 300_000)), max_size=40))
def test_whatever_is_written_the_folder_keeps_to_its_size(steps: list[tuple[str, int]]) -> None:
    most_open = 2
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        folder = JournalFolder(Path(place), LEAST_SIZE, most_open * LEAST_SIZE + 500_000)
        growing: list[Journal] = []
        for number, (what, size) in enumerate(steps):
            if what == "begin" and len(growing) < most_open:
                growing.append(stack.enter_context(folder.begin(NAMES[number])))
            elif what == "write" and growing:
                growing[size % len(growing)].record([], [keepsake(number, 10 * size + 1)])
            elif growing:
                growing.pop(0).close()
            assert nbytes(folder.folder) <= folder.total
