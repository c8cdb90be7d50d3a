"""A file is written whole, or what lay there stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from videollm.files import write_whole, written_whole


def test_what_fails_leaves_what_lay_there(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    write_whole(path, b"old")
    with pytest.raises(OSError, match="full"), written_whole(path) as partial:
        partial.write_bytes(b"ne")
        raise OSError("the disk is full")
    assert path.read_bytes() == b"old" and [*tmp_path.iterdir()] == [path]
    write_whole(path, b"new")
    assert path.read_bytes() == b"new" and [*tmp_path.iterdir()] == [path]
