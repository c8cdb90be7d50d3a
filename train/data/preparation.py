"""The preparing of a data set: which file each video is, what is there already, what goes into one shard."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from stream.sources import SourceError, open_source
from stream.sources.opening import CLIP_SUFFIXES
from train.data.annotations import AnnotatedVideo
from train.data.encoding import Job, Made
from train.data.readers.egoexo4d import take_of
from train.data.shards import ShardWriter

SHARD_BYTES = 2**26  # minutes of encoding, which is what a kill costs
MISSING = "no file of that name"
UNKNOWN_SECONDS = 600.0  # of a file that does not say how long it is


class VideoFiles:
    """The clips in a folder and below it, found by the names that annotations call them.

    A take of Ego-Exo4D is its ego view, the one of full size where a downscaled one lies beside it.
    """

    def __init__(self, folder: Path) -> None:
        by_name: dict[str, list[Path]] = defaultdict(list)
        takes: dict[str, Path] = {}
        for file in sorted(folder.rglob("*")):
            if file.suffix.lower() in CLIP_SUFFIXES and file.is_file():
                inside = file.relative_to(folder)
                for name in {file.stem, file.name, str(inside), str(inside.with_suffix(""))}:
                    by_name[name].append(file)
                if take := take_of(inside):
                    takes.setdefault(take, file)  # sorted, so the full size comes first
        self._by_name = {take: [file] for take, file in takes.items()} | by_name

    def find(self, video: str) -> Path:
        """The file of that stem, name or path in the folder. LookupError where there is none, or several."""
        files = self._by_name.get(video)
        if not files:
            raise LookupError(MISSING)
        if len(files) > 1:
            raise LookupError(f"several files have that name, such as {files[0]} and {files[1]}")
        return files[0]


@dataclass
class Plan:
    """What is to be done about the videos of an annotation."""

    jobs: list[Job]  # the shards to be made
    files: dict[str, Path]  # of every video that has one
    copies: dict[str, list[str]]  # other videos with the same content, by the first of them
    kept: set[str]  # what was there before
    failed: dict[str, str]  # what can't be prepared, with the reason
    seconds: float  # of video to be encoded


def plan(
    annotated: Iterable[AnnotatedVideo], files: VideoFiles, writer: ShardWriter, bytes_per_second: float
) -> Plan:
    """Divide what the writer's folder lacks into shards of about `SHARD_BYTES`, in the annotation's order.

    A file's content is encoded once, whatever the number of its names. `bytes_per_second` is what features of
    video take.
    """
    declared = {video.video: video.duration for video in annotated}
    found: dict[str, Path] = {}
    failed: dict[str, str] = {}
    for video in declared:
        try:
            found[video] = files.find(video)
        except LookupError as error:
            failed[video] = error.args[0]
    kept = {video: path for video, path in found.items() if writer.holds(video, path)}
    copies: dict[str, list[str]] = {}
    for video, first in first_of_content(kept | found).items():
        copies.setdefault(first, [])
        if video != first and video not in kept:
            copies[first].append(video)
    seconds: dict[str, float] = {}
    for first in copies:
        if first in kept:
            continue
        try:
            seconds[first] = declared[first] or seconds_of(found[first])
        except SourceError as error:
            failed |= dict.fromkeys([first, *copies[first]], str(error))
    jobs = []
    for videos in _parts([video for video in found if video in seconds], seconds, bytes_per_second):
        jobs.append(Job(writer.new_path(), {video: found[video] for video in videos}))
    return Plan(jobs, found, copies, set(kept), failed, sum(seconds.values()))


def carry_out(
    plan: Plan, writer: ShardWriter, made: Iterable[Made], failed: Callable[[str, str], object]
) -> int:
    """Count the shards as they are made, and give how many frames are in them.

    `made` is what `ShardMaker` makes of the plan's jobs, in any order. `failed` hears once of every video
    that can't be prepared, and why.
    """
    for video, reason in plan.failed.items():
        failed(video, reason)
    for first in plan.kept & plan.copies.keys():
        _add_copies(plan, writer, first)
    frames = 0
    for result in made:
        if result.shard is not None:
            writer.add(result.shard)
            for video, entry in result.shard.videos.items():
                frames += entry.frames
                _add_copies(plan, writer, video)
        for first, reason in result.failed.items():
            for video in (first, *plan.copies[first]):
                failed(video, reason)
    return frames


def _add_copies(plan: Plan, writer: ShardWriter, first: str) -> None:
    if plan.copies[first]:
        writer.add_copies(first, {copy: plan.files[copy] for copy in plan.copies[first]})


def first_of_content(files: Mapping[str, Path]) -> dict[str, str]:
    """For each the first whose file has the same content, which may be itself.

    Only files of the same size are read for it: a data set has terabytes.
    """
    by_size: dict[int, list[str]] = defaultdict(list)
    for name, path in files.items():
        by_size[path.stat().st_size].append(name)
    firsts = {}
    for names in by_size.values():
        if len(names) == 1:
            firsts[names[0]] = names[0]
            continue
        digests = {path: _digest(path) for path in {files[name] for name in names}}
        by_digest: dict[bytes, str] = {}
        for name in names:
            firsts[name] = by_digest.setdefault(digests[files[name]], name)
    return firsts


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").digest()


def seconds_of(path: Path) -> float:
    """How long a clip plays by its header. Raises SourceError."""
    with open_source(str(path)) as source:
        return source.duration or UNKNOWN_SECONDS


def _parts(
    videos: Iterable[str], seconds: Mapping[str, float], bytes_per_second: float
) -> Iterator[list[str]]:
    part: list[str] = []
    size = 0.0
    for video in videos:
        part.append(video)
        size += seconds[video] * bytes_per_second
        if size >= SHARD_BYTES:
            yield part
            part, size = [], 0.0
    if part:
        yield part
