"""EPIC-KITCHENS, `EPIC_100_train.csv` and `EPIC_100_validation.csv`; those of EPIC-KITCHENS-55 have the same
columns.

Format: https://github.com/epic-kitchens/epic-kitchens-100-annotations ("File Structure").
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from train.data.annotations import AnnotatedVideo, Segment, Skipped
from train.data.segments import sound

COLUMNS = ("video_id", "start_timestamp", "stop_timestamp", "narration")
_TIMESTAMP = re.compile(r"(\d+):([0-5]?\d):([0-5]?\d(?:\.\d+)?)")


def read(path: Path, skipped: Skipped) -> list[AnnotatedVideo]:
    """The videos with their actions in the narrator's words; the split is the end of the file's name."""
    actions: dict[str, list[Segment]] = defaultdict(list)
    for video, segment in _rows(path):
        actions[video].append(segment)
    split = path.stem.removeprefix("EPIC_100_")
    videos = []
    for video, said in actions.items():
        segments = sound(said, video, None, skipped)
        if segments:
            videos.append(AnnotatedVideo(video, segments, split=split))
        else:
            skipped.add("video without actions", video)
    return videos


def _rows(path: Path) -> Iterator[tuple[str, Segment]]:
    with path.open(encoding="utf-8", newline="") as lines:
        rows = csv.DictReader(lines, strict=True)
        try:
            lacking = [column for column in COLUMNS if column not in (rows.fieldnames or ())]
            if lacking:
                raise ValueError(
                    f"{path} lacks {' and '.join(lacking)} in its first line; "
                    "EPIC_100_train.csv or EPIC_100_validation.csv is wanted"
                )
            for row in rows:
                video, start, stop, text = (row[column] for column in COLUMNS)
                if not video or text is None or None in row:
                    raise ValueError(
                        f"{path}, line {rows.line_num}: not as many columns as the first line has"
                    )
                try:
                    yield video, Segment(_seconds(start), text, _seconds(stop))
                except ValueError as error:
                    raise ValueError(f"{path}, line {rows.line_num}: {error}") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}, after line {rows.line_num}: not UTF-8 text") from error
        except csv.Error as error:
            raise ValueError(f"{path}, line {rows.line_num}: {error}") from error


def _seconds(timestamp: str) -> float:
    match = _TIMESTAMP.fullmatch(timestamp.strip())
    if match is None:
        raise ValueError(f"{timestamp!r} is no time like 00:01:23.45")
    hours, minutes, seconds = match.groups()
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
