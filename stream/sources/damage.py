"""Tells a media file that was cut off from a whole one."""

from __future__ import annotations

import struct
from pathlib import Path

from stream.export.times import format_time

MARGIN_SECONDS = 1.0
TRANSPORT_PACKET_BYTES = (188, 192, 204)


def cut_short(path: Path, container: str, declared: float | None, end: float) -> bool:
    """Whether the end of the file is missing.

    `container` is FFmpeg's name of the format, `declared` the duration in its header (seconds), `end` the
    presentation time at which the last packet of any track ends.
    """
    if container == "mpegts":
        size = path.stat().st_size
        return all(size % packet for packet in TRANSPORT_PACKET_BYTES)
    if not container.startswith(("mov", "matroska")):
        return False  # their durations are estimates
    if declared is not None and end < declared - MARGIN_SECONDS:
        return True
    return container.startswith("mov") and _last_box_is_cut(path)


def _last_box_is_cut(path: Path) -> bool:
    # A fragmented MP4 declares no duration, but each of its top-level boxes states its own size.
    size, offset = path.stat().st_size, 0
    with path.open("rb") as file:
        while offset < size:
            file.seek(offset)
            head = file.read(16)
            if len(head) < 8:
                return True
            box: int = struct.unpack(">I", head[:4])[0]
            if box == 1 and len(head) == 16:
                box = struct.unpack(">Q", head[8:])[0]
            if box < 8:  # 0 means "up to the end of the file"; the rest is no box
                return False
            offset += box
    return offset > size


def describe(cut: bool, last: float, damaged_at: float | None) -> str | None:
    """One line about a clip whose last frame is at `last` seconds, or None when it is sound."""
    if cut:
        return f"the clip ends early: damaged at {format_time(last)}"
    if damaged_at is not None:
        return f"the clip is damaged at {format_time(damaged_at)}: some pictures there are missing or spoiled"
    return None
