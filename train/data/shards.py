"""Features of videos on disk: a folder of safetensors shards, an index of them, the videos' annotation.

Every file is written whole or not at all, and a shard counts once the index names it, so that whatever stops
a writer costs the shard in hand alone.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import msgspec
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from train.data.annotations import AnnotatedVideo, Skipped
from train.data.segments import sound
from videollm.files import write_whole

INDEX = "index.json"
ANNOTATION = "annotation.jsonl"
LOCK = ".lock"
AGAIN = "run videollm prepare again, it makes anew what is missing"


class ShardError(Exception):
    """A prepared folder can't be used; the message is one line that says what to do."""


class Encoding(msgspec.Struct, frozen=True):
    """How frames became features: the vision tower's name, its input's side in pixels, frames a second, and
    tokens a frame (1 + 3x3 in VideoLLM-online)."""

    vision: str
    size: int
    fps: float
    tokens: int = 10


class FileFacts(msgspec.Struct, frozen=True):
    """By what a video's file is known again: its size in bytes, and when it was changed last, in ns."""

    bytes: int
    modified: int

    @classmethod
    def of(cls, path: Path) -> Self:
        facts = path.stat()
        return cls(facts.st_size, facts.st_mtime_ns)


class Entry(msgspec.Struct, frozen=True):
    """Where a video's features lie: in which shard, under which video's name (another one's for a copy)."""

    shard: str
    name: str
    frames: int
    duration: float  # seconds
    file: FileFacts | None = None


class Shard(msgspec.Struct, frozen=True):
    """A shard that is written, and what is in it."""

    name: str
    bytes: int
    videos: dict[str, Entry]


class Index(msgspec.Struct):
    encoding: Encoding
    shards: dict[str, int] = {}  # bytes of each
    videos: dict[str, Entry] = {}
    version: Literal[1] = 1


@dataclass(frozen=True)
class VideoFeatures:
    """What is kept of one video."""

    features: np.ndarray  # float16 [frames, tokens, dim], the vision tower's output
    times: np.ndarray  # float64 [frames], seconds
    duration: float  # seconds
    file: FileFacts | None = None


def write_shard(path: Path, videos: Mapping[str, VideoFeatures]) -> Shard:
    """Write these videos' features as one file, whole or not at all."""
    tensors = {f"features/{name}": video.features for name, video in videos.items()}
    tensors |= {f"times/{name}": video.times for name, video in videos.items()}
    data = save(tensors)
    write_whole(path, data)
    entries = {
        name: Entry(path.name, name, len(video.features), video.duration, video.file)
        for name, video in videos.items()
    }
    return Shard(path.name, len(data), entries)


class ShardWriter:
    """The one writer of a prepared folder, which it begins or continues; a context manager.

    Shards are written by `write_shard`, on any machine, and counted here by `add`. `lost` are the shards that
    were missing or cut short, whose videos count no longer. Raises ShardError where another writer is at
    work, and where what lies there was encoded otherwise.
    """

    def __init__(self, folder: Path, encoding: Encoding, annotation: Iterable[AnnotatedVideo]) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = (folder / LOCK).open("w")
        try:
            self._continue(encoding)
            lines = msgspec.json.Encoder().encode_lines(list(annotation))
            write_whole(folder / ANNOTATION, lines)
            self._save()
        except BaseException:
            self._lock.close()
            raise

    def _continue(self, encoding: Encoding) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ShardError(
                f"{self.folder} is being prepared by another process; wait for it, or give another folder"
            ) from None
        self.index = read_index(self.folder) or Index(encoding)
        if self.index.encoding != encoding:
            raise ShardError(
                f"{self.folder} holds {_described(self.index.encoding)}, not {_described(encoding)}; "
                "give another folder"
            )
        self.lost = [
            name for name, size in self.index.shards.items() if not _is_whole(self.folder / name, size)
        ]
        for name in self.lost:
            del self.index.shards[name]
        videos = self.index.videos.items()
        self.index.videos = {video: entry for video, entry in videos if entry.shard in self.index.shards}
        for file in self.folder.glob("*shard-*"):  # of a run that was stopped
            if file.name not in self.index.shards:
                file.unlink()
        self._next = 1 + max(
            (int(name.split(".")[0].split("-")[1]) for name in self.index.shards), default=-1
        )

    def new_path(self) -> Path:
        """Where the next shard goes."""
        self._next += 1
        return self.folder / f"shard-{self._next - 1:06d}.safetensors"

    def holds(self, video: str, file: Path) -> bool:
        """Whether the video's features are here, made from this very file."""
        entry = self.index.videos.get(video)
        return entry is not None and entry.file == FileFacts.of(file)

    def add(self, shard: Shard) -> None:
        """Count a shard that is written."""
        self.index.shards[shard.name] = shard.bytes
        self.index.videos |= shard.videos
        self._save()

    def add_copies(self, video: str, copies: Mapping[str, Path]) -> None:
        """Count other videos whose files have the same content as one that is here."""
        entry = self.index.videos[video]
        for copy, file in copies.items():
            self.index.videos[copy] = msgspec.structs.replace(entry, file=FileFacts.of(file))
        self._save()

    def _save(self) -> None:
        write_whole(self.folder / INDEX, msgspec.json.encode(self.index))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._lock.close()


class Shards:
    """A prepared folder, to be read. Raises ShardError, which names the file, for one that isn't whole.

    `annotation` holds the prepared videos' alone, with their real durations; segments beyond these are left
    out and counted in `skipped`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index = read_index(folder)
        if index is None:
            raise ShardError(f"{folder} holds nothing prepared; make it with: videollm prepare")
        for name, size in index.shards.items():
            if not _is_whole(folder / name, size):
                raise ShardError(f"{folder / name} is cut short or missing; {AGAIN}")
        self.vision = index.encoding.vision
        self.size = index.encoding.size
        self.fps = index.encoding.fps
        self.videos = sorted(index.videos)
        self._entries = index.videos
        self.skipped = Skipped()
        self.annotation = self._prepared(self._annotated())

    def frames(self, video: str) -> int:
        """How many frames there are of it."""
        return self._entries[video].frames

    def duration(self, video: str) -> float:
        """Its seconds."""
        return self._entries[video].duration

    def features(self, video: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """The vision tower's output for its frames `start` to `stop`, float16 [frames, tokens, dim]."""
        return self._read("features", video, start, stop)

    def times(self, video: str) -> np.ndarray:
        """When each of its frames is shown, float64 [frames], in seconds.

        Frame i is the first at or after i / fps, unless the file has a gap or fewer frames a second.
        """
        return self._read("times", video, 0, None)

    def _read(self, kind: str, video: str, start: int, stop: int | None) -> np.ndarray:
        entry = self._entries[video]
        path = self.folder / entry.shard
        try:
            with safe_open(path, "np") as shard:
                part: np.ndarray = shard.get_slice(f"{kind}/{entry.name}")[
                    start : entry.frames if stop is None else min(stop, entry.frames)
                ]
        except (SafetensorError, FileNotFoundError) as error:
            raise ShardError(f"{path} is cut short or missing; {AGAIN}") from error
        return part

    def _annotated(self) -> list[AnnotatedVideo]:
        path = self.folder / ANNOTATION
        try:
            return msgspec.json.Decoder(AnnotatedVideo).decode_lines(path.read_bytes())
        except (FileNotFoundError, msgspec.DecodeError) as error:
            raise ShardError(f"{path} is missing or damaged ({error}); {AGAIN}") from error

    def _prepared(self, annotated: list[AnnotatedVideo]) -> list[AnnotatedVideo]:
        prepared = []
        for video in annotated:
            if video.video not in self._entries:
                continue
            duration = self.duration(video.video)
            inside = sound(video.segments, video.video, duration, self.skipped)
            prepared.append(replace(video, segments=inside, duration=duration))
        return prepared


def read_index(folder: Path) -> Index | None:
    """The index of a prepared folder; None where there is none. ShardError for a damaged one."""
    path = folder / INDEX
    try:
        return msgspec.json.decode(path.read_bytes(), type=Index)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise ShardError(f"{path} is damaged or of another version ({error}); give another folder") from error


def _is_whole(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _described(encoding: Encoding) -> str:
    frames = f"{encoding.fps:g} frames a second of {encoding.tokens} tokens"
    return f"{encoding.vision} at {encoding.size} pixels, {frames}"
