"""Prepared folders: what was written is read, and what is not whole is named."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.data.annotations import AnnotatedVideo, Segment
from train.data.preparation import VideoFiles, first_of_content
from train.data.shards import Encoding, ShardError, Shards, ShardWriter, VideoFeatures, write_shard

ENCODING = Encoding("tower", 32, 2.0)
VIDEOS = ("P01/ünder", "b", "c")


def features_of(seed: int, frames: int = 5) -> VideoFeatures:
    features = np.random.default_rng(seed).standard_normal((frames, 10, 8)).astype(np.float16)
    return VideoFeatures(features, np.arange(frames) / 2, frames / 2)


def annotated(video: str, *starts: float) -> AnnotatedVideo:
    return AnnotatedVideo(video, tuple(Segment(start, "stirs") for start in starts))


def fill(folder: Path, videos: Mapping[str, int]) -> None:
    """A shard for each of the videos, of its seed."""
    with ShardWriter(folder, ENCODING, [annotated(video, 0.0, 2.5) for video in VIDEOS]) as writer:
        for video, seed in videos.items():
            writer.add(write_shard(writer.new_path(), {video: features_of(seed)}))


def test_what_was_written_is_read(tmp_path: Path) -> None:
    fill(tmp_path, {"P01/ünder": 1, "b": 2})
    shards = Shards(tmp_path)
    assert (shards.vision, shards.size, shards.fps, shards.videos) == ("tower", 32, 2.0, ["P01/ünder", "b"])
    for video, seed in (("P01/ünder", 1), ("b", 2)):
        wanted = features_of(seed)
        np.testing.assert_array_equal(shards.features(video), wanted.features)
        np.testing.assert_array_equal(shards.features(video, 1, 3), wanted.features[1:3])
        np.testing.assert_array_equal(shards.features(video, 4), wanted.features[4:])
        np.testing.assert_array_equal(shards.times(video), wanted.times)
        assert (shards.frames(video), shards.duration(video)) == (5, 2.5)
        assert shards.features(video).dtype == np.float16


def test_annotation_is_of_what_is_prepared_and_ends_with_the_video(tmp_path: Path) -> None:
    fill(tmp_path, {"b": 2})
    shards = Shards(tmp_path)
    assert shards.annotation == [AnnotatedVideo("b", (Segment(0.0, "stirs"),), duration=2.5)]
    assert str(shards.skipped) == "1 x segment beyond the video's end (first: b at 2.5 s)"


@pytest.mark.parametrize("left", [0, 5, -1])
def test_a_shard_cut_short_is_named_and_its_videos_count_no_longer(left: int, tmp_path: Path) -> None:
    fill(tmp_path, {"P01/ünder": 1, "b": 2})
    opened_before = Shards(tmp_path)
    shard = tmp_path / "shard-000001.safetensors"
    shard.write_bytes(shard.read_bytes()[:left])
    with pytest.raises(ShardError, match=r"shard-000001\.safetensors is cut short .* videollm prepare again"):
        opened_before.features("b")
    with pytest.raises(ShardError, match=r"shard-000001\.safetensors is cut short"):
        Shards(tmp_path)
    with ShardWriter(tmp_path, ENCODING, []) as writer:
        assert writer.lost == ["shard-000001.safetensors"]
        assert set(writer.index.videos) == {"P01/ünder"}
        writer.add(write_shard(writer.new_path(), {"b": features_of(3)}))
    np.testing.assert_array_equal(Shards(tmp_path).features("b"), features_of(3).features)


def test_a_shard_that_the_index_does_not_name_is_written_over(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, ENCODING, []) as writer:  # stopped before it counted this one
        write_shard(writer.new_path(), {"b": features_of(1)})
        (tmp_path / ".shard-000001.safetensors.partial").write_bytes(b"half")
    assert Shards(tmp_path).videos == []
    fill(tmp_path, {"c": 2})
    assert sorted(file.name for file in tmp_path.glob("*shard*")) == ["shard-000000.safetensors"]
    assert Shards(tmp_path).videos == ["c"]


def test_a_folder_has_one_writer(tmp_path: Path) -> None:
    with (
        ShardWriter(tmp_path, ENCODING, []),
        pytest.raises(ShardError, match="is being prepared by another process"),
    ):
        ShardWriter(tmp_path, ENCODING, [])
    ShardWriter(tmp_path, ENCODING, []).__exit__(None, None, None)


def test_a_folder_has_one_encoding(tmp_path: Path) -> None:
    fill(tmp_path, {"b": 2})
    with pytest.raises(ShardError, match=r"tower at 32 pixels and 2 frames .*, not tower at 32 .* 4 frames"):
        ShardWriter(tmp_path, Encoding("tower", 32, 4.0), [])
    assert Shards(tmp_path).videos == ["b"]


@pytest.mark.parametrize("damage", [b"", b'{"version": 2}', b"[]"])
def test_a_damaged_index_is_named(damage: bytes, tmp_path: Path) -> None:
    fill(tmp_path, {"b": 2})
    (tmp_path / "index.json").write_bytes(damage)
    with pytest.raises(ShardError, match=r"index\.json is damaged or of another version"):
        Shards(tmp_path)


def test_an_empty_folder_says_what_fills_it(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="videollm prepare"):
        Shards(tmp_path)


@given(st.lists(st.sampled_from([b"", b"a", b"b", b"aa", b"ab"]), max_size=8))
def test_the_same_content_has_one_first(contents: list[bytes]) -> None:
    with TemporaryDirectory() as folder:
        files = {}
        for number, content in enumerate(contents):
            files[str(number)] = Path(folder) / str(number)
            files[str(number)].write_bytes(content)
        assert first_of_content(files) == {
            str(number): str(contents.index(content)) for number, content in enumerate(contents)
        }


def test_a_video_is_found_by_stem_name_or_path(tmp_path: Path) -> None:
    for name in ("P01/one.MP4", "P02/two.mkv", "P03/two.mp4", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    files = VideoFiles(tmp_path)
    for name in ("one", "one.MP4", "P01/one", "P01/one.MP4"):
        assert files.find(name) == tmp_path / "P01" / "one.MP4"
    assert files.find("P03/two") == tmp_path / "P03" / "two.mp4"
    with pytest.raises(LookupError, match="several files"):
        files.find("two")
    for name in ("notes", "three"):
        with pytest.raises(LookupError, match="no file"):
            files.find(name)
