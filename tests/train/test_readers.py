"""Annotation in the true formats: what is read of it, and what is told about what can't be."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.data.annotations import AnnotatedVideo, Segment, Skipped
from train.data.preparation import VideoFiles
from train.data.readers import READERS, read_annotation
from train.data.readers.coin import task_in_words
from train.data.segments import SLACK, sound

NARRATIONS = {
    "a-1": {
        "status": "complete",
        "narration_pass_1": {
            "narrations": [
                {
                    "timestamp_sec": 7.5,
                    "timestamp_frame": 225,
                    "narration_text": "#C C puts a #unsure down.",
                },
                {"timestamp_sec": 3.2, "timestamp_frame": 96, "narration_text": "#C C picks a cup \n"},
                {"timestamp_sec": 4.0, "timestamp_frame": 120, "narration_text": "#O A man X walks"},
                {"timestamp_sec": 5.0, "timestamp_frame": 150, "narration_text": "#C C"},
                {"timestamp_sec": -0.4, "timestamp_frame": 0, "narration_text": "#C C stands"},
                {"timestamp_sec": 9.0, "timestamp_frame": 270, "narration_text": "#unsure"},
            ],
            "summaries": [{"start_sec": 0, "end_sec": 300, "summary_text": "#Summary C cooks"}],
        },
        "narration_pass_2": {"narrations": [{"timestamp_sec": 3.0, "narration_text": "#c C lifts a cup."}]},
    },
    "b-2": {"status": "redacted"},
}

LTA = {
    "version": "v2",
    "split": "train",
    "clips": [
        {
            "video_uid": "v",
            "clip_uid": "c",
            "clip_parent_start_sec": 60.0,
            "clip_parent_end_sec": 360.0,
            "action_clip_start_sec": 8.0,
            "action_clip_end_sec": 16.0,
            "action_idx": 0,
            "verb": "turn-on_(switch_on,_start,_light)",
            "noun": "stove",
            "verb_label": 3,
            "noun_label": 7,
        }
    ],
}


def goalstep_segment(start: float, end: float, text: str, **more: Any) -> dict[str, Any]:
    return {
        "start_time": start,
        "end_time": end,
        "step_category": "Some: category",
        "step_description": text,
        "is_continued": False,
        **more,
    }


GOALSTEP = {
    "version": "v2_1",
    "split": "val",
    "videos": [
        {
            "video_uid": "g",
            "start_time": 0.02,
            "end_time": 510.2,
            "goal_category": "COOKING:MAKE_OMELET",
            "goal_description": "Make omelette",
            "summary": ["Toasting bread on a pan"],
            "segments": [
                goalstep_segment(
                    0, 57, "Toast bread", segments=[goalstep_segment(0, 13.1, "preheat the stove-top")]
                ),
                goalstep_segment(60, 70, "Break an egg", segments=[]),
            ],
        }
    ],
}

COIN = {
    "database": {
        "LtRSn-ntcLY": {
            "duration": 131.03,
            "class": "ReplaceCDDriveWithSSD",
            "video_url": "https://www.youtube.com/embed/LtRSn-ntcLY",
            "start": 56.6,
            "end": 85.7,
            "subset": "training",
            "recipe_type": 131,
            "annotation": [
                {"id": "216", "segment": [71.0, 82.0], "label": "insert the hard disk tray"},
                {"id": "212", "segment": [60.0, 69.0], "label": "take out the laptop CD drive"},
                {"id": "213", "segment": [140.0, 150.0], "label": "screw"},
                {"id": "214", "segment": [30.0, 30.0], "label": "screw"},
            ],
        }
    }
}

TAKES = [
    {"take_uid": "7-1", "take_name": "cmu_bike01_4", "duration_sec": 21.4, "root_dir": "takes/cmu_bike01_4"}
]


def description(timestamp: float, text: str, visible: Any) -> dict[str, Any]:
    return {
        "text": text,
        "timestamp": timestamp,
        "subject": "C",
        "ego_visible": visible,
        "best_exo": {"raw_cam_id": "1", "cam_id": "cam01"},
        "unsure": "0",
    }


DESCRIPTIONS = {
    "annotations": {
        "7-1": [
            {
                "annotation_uid": "f",
                "rejected": False,
                "reject_reason": None,
                "descriptions": [
                    description(18.5, "C touches the screw.", True),
                    description(3.9, "C moves his right hand.", False),
                    description(60.0, "C leaves.", True),
                ],
            },
            {"annotation_uid": "g", "rejected": True, "descriptions": [description(1.0, "C waits.", "1")]},
            {
                "annotation_uid": "h",
                "rejected": False,
                "descriptions": [
                    description(1.0, "The man X walks.", "1"),
                    description(2.0, "C leans.", "0"),
                ],
            },
        ],
        "8-2": [],
    },
    "taxonomy": {},
}

KEYSTEPS = {
    "annotations": {
        "77cd": {
            "take_uid": "77cd",
            "take_name": "georgiatech_covid_07_6",
            "scenario": "Covid-19 Rapid Antigen Test",
            "segments": [
                {
                    "start_time": 0.85,
                    "end_time": 33.2,
                    "step_id": 31,
                    "step_name": "Unbox package",
                    "step_description": "Unbox covid19 test package",
                    "is_essential": True,
                    "step_unique_id": 843,
                }
            ],
        }
    },
    "taxonomy": {"Covid-19 Rapid Antigen Test": {}},
    "vocabulary": {"843": "Unbox package"},
}

EPIC_HEAD = (
    "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,"
    "stop_frame,narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes\n"
)
EPIC_ROW = (
    "P01_01_0,P01,P01_01,00:00:01.089,{start},{stop},8,202,open door,open,3,door,3,"
    "\"['door', 'key']\",\"[3, 9]\"\n"
)

OWN = '{"video": "k", "segments": [{"start": 2.5, "end": 4, "text": "opens the fridge"}], "duration": 60}\n'


def written(folder: Path, content: Any) -> Path:
    path = folder / "annotation.json"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


def test_ego4d_narrations_lose_their_tags_and_come_once_an_annotator(tmp_path: Path) -> None:
    skipped = Skipped()
    first, second = read_annotation("ego4d-narrations", written(tmp_path, NARRATIONS), skipped)
    assert first == AnnotatedVideo(
        "a-1", (Segment(3.2, "C picks a cup"), Segment(4.0, "A man X walks"), Segment(7.5, "C puts a down"))
    )
    assert second == AnnotatedVideo("a-1", (Segment(3.0, "C lifts a cup"),))
    assert skipped.counts == {
        "narration of one word": 1,
        "segment before the video's beginning": 1,
        "segment without text": 1,
        "video without narrations": 1,
    }


def test_long_term_anticipation_is_read_by_clip(tmp_path: Path) -> None:
    (video,) = read_annotation("ego4d-lta", written(tmp_path, LTA), Skipped())
    assert video == AnnotatedVideo("c", (Segment(8.0, "turn-on stove", 16.0),), 300.0, "train")


def test_goalstep_gives_the_finest_steps(tmp_path: Path) -> None:
    (video,) = read_annotation("ego4d-goalstep", written(tmp_path, GOALSTEP), Skipped())
    finest = (Segment(0, "preheat the stove-top", 13.1), Segment(60, "Break an egg", 70))
    assert video == AnnotatedVideo("g", finest, split="val", task="Make omelette")


def test_coin_is_read_with_its_steps_in_order(tmp_path: Path) -> None:
    skipped = Skipped()
    (video,) = read_annotation("coin", written(tmp_path, COIN), skipped)
    steps = (
        Segment(60.0, "take out the laptop CD drive", 69.0),
        Segment(71.0, "insert the hard disk tray", 82.0),
    )
    assert video == AnnotatedVideo("LtRSn-ntcLY", steps, 131.03, "training", "replace CD drive with SSD")
    assert skipped.counts == {
        "segment beyond the video's end": 1,
        "segment that is empty or ends before it begins": 1,
    }
    assert "LtRSn-ntcLY at 140 s" in str(skipped)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("PutOnHairExtensions", "put on hair extensions"),
        ("MakeRJ45Cable", "make RJ45 cable"),
        ("ReplaceSIMCard", "replace SIM card"),
        ("InstallAWallSocket", "install a wall socket"),
    ],
)
def test_coins_classes_in_words(name: str, words: str) -> None:
    assert task_in_words(name) == words


def test_atomic_descriptions_are_those_the_ego_view_shows(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    path = written(tmp_path / "annotations", DESCRIPTIONS)
    with pytest.raises(ValueError, match=r"needs takes\.json"):
        read_annotation("egoexo4d-descriptions", path, Skipped())
    (tmp_path / "takes.json").write_text(json.dumps(TAKES))
    skipped = Skipped()
    assert read_annotation("egoexo4d-descriptions", path, skipped) == [
        AnnotatedVideo("cmu_bike01_4", (Segment(18.5, "C touches the screw."),), 21.4),
        AnnotatedVideo("cmu_bike01_4", (Segment(1.0, "The man X walks."),), 21.4),
    ]
    assert skipped.counts == {
        "description of what the ego view doesn't show": 2,
        "segment beyond the video's end": 1,
        "annotation that was rejected": 1,
        "take that takes.json doesn't know": 1,
    }


def test_keysteps_are_read_by_take(tmp_path: Path) -> None:
    (video,) = read_annotation("egoexo4d-keysteps", written(tmp_path, KEYSTEPS), Skipped())
    steps = (Segment(0.85, "Unbox package", 33.2),)
    assert video == AnnotatedVideo("georgiatech_covid_07_6", steps, task="Covid-19 Rapid Antigen Test")


def test_a_take_is_its_ego_view(tmp_path: Path) -> None:
    small = tmp_path / "takes/cmu_bike01_4/frame_aligned_videos/downscaled/448/aria01_214-1.mp4"
    other = tmp_path / "takes/sfu_cooking_1/frame_aligned_videos/aria01_214-1.mp4"
    for clip in (small, other, small.with_name("cam01.mp4"), small.with_name("aria01_1201-1.mp4")):
        clip.parent.mkdir(parents=True, exist_ok=True)
        clip.touch()
    for folder in (tmp_path, tmp_path / "takes"):
        assert VideoFiles(folder).find("cmu_bike01_4") == small
        assert VideoFiles(folder).find("sfu_cooking_1") == other
    full = small.parents[2] / small.name
    full.touch()
    assert VideoFiles(tmp_path).find("cmu_bike01_4") == full
    with pytest.raises(LookupError, match="several files"):
        VideoFiles(tmp_path).find("aria01_214-1")


def test_epic_kitchens_is_read_by_video(tmp_path: Path) -> None:
    path = tmp_path / "EPIC_100_train.csv"
    path.write_text(
        EPIC_HEAD
        + EPIC_ROW.format(start="00:01:00.14", stop="00:01:03.37")
        + EPIC_ROW.format(start="00:00:05.5", stop="00:00:05.50")
    )
    skipped = Skipped()
    (video,) = read_annotation("epic-kitchens", path, skipped)
    assert video == AnnotatedVideo("P01_01", (Segment(60.14, "open door", 63.37),), split="train")
    assert skipped.counts == {"segment that is empty or ends before it begins": 1}


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (EPIC_ROW.format(start="12.5", stop="00:00:03"), "12.5"),
        ("P01_01_0,P01,P01_01\n", "columns"),
        (EPIC_ROW.format(start="00:00:01", stop="00:00:02").replace("\n", ",more\n"), "columns"),
    ],
)
def test_a_malformed_row_is_told_with_its_line(line: str, told: str, tmp_path: Path) -> None:
    good = EPIC_ROW.format(start="00:00:01", stop="00:00:02")
    path = written(tmp_path, EPIC_HEAD + good + line)
    with pytest.raises(ValueError, match=f"line 3: .*{told}") as error:
        read_annotation("epic-kitchens", path, Skipped())
    assert str(path) in str(error.value)


def test_annotation_of_ones_own(tmp_path: Path) -> None:
    (video,) = read_annotation("jsonl", written(tmp_path, OWN), Skipped())
    assert video == AnnotatedVideo("k", (Segment(2.5, "opens the fridge", 4.0),), 60.0)


REPEATED = {
    "ego4d-narrations": f'{{"a": {json.dumps(NARRATIONS["a-1"])}, "a": {{}}}}',
    "ego4d-goalstep": {"videos": GOALSTEP["videos"] * 2},
    "coin": '{"database": {"a": IT, "a": IT}}'.replace("IT", json.dumps(COIN["database"]["LtRSn-ntcLY"])),
    "jsonl": OWN * 2,
}


@pytest.mark.parametrize("kind", REPEATED)
def test_a_video_listed_twice_is_told(kind: str, tmp_path: Path) -> None:
    path = written(tmp_path, REPEATED[kind])
    with pytest.raises(ValueError, match=r"listed twice|is in line 1 already") as error:
        read_annotation(kind, path, Skipped())
    assert str(path) in str(error.value)


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b'{"database": {"a": {"dura', id="cut short"),
        pytest.param(b'["no annotation"]', id="another form"),
        pytest.param(b'{"results": {}, "version": "9"}', id="another format"),
        pytest.param(
            b'{"video": "k\xff", "segments": [], "database": {"\xff": 1}, "videos": [{"video_uid": "\xff"}],'
            b' "clips": [{"clip_uid": "\xff"}]}',
            id="not UTF-8",
        ),
    ],
)
def test_what_is_no_annotation_of_the_kind_is_told_with_the_file(
    kind: str, content: bytes, tmp_path: Path
) -> None:
    path = written(tmp_path, content)
    with pytest.raises(ValueError, match="annotation") as error:
        read_annotation(kind, path, Skipped())
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_wrong_field_is_told_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="timestamp_sec"):
        read_annotation(
            "ego4d-narrations",
            written(tmp_path, {"a": {"narration_pass_1": {"narrations": [{"narration_text": "x"}]}}}),
            Skipped(),
        )
    with pytest.raises(ValueError, match=r"line 3: .*unknown field `tex`"):
        read_annotation(
            "jsonl",
            written(tmp_path, OWN + '\n{"video": "l", "segments": [{"start": 1, "text": "", "tex": "x"}]}\n'),
            Skipped(),
        )


def test_an_unknown_kind_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="coin"):
        read_annotation("activitynet", tmp_path, Skipped())


times = st.floats() | st.floats(-5, 40)


@given(
    st.lists(
        st.builds(Segment, times, st.text(st.sampled_from("ab \n"), max_size=4), st.none() | times),
        max_size=20,
    ),
    st.none() | st.floats(0.1, 30),
)
def test_every_segment_is_kept_or_counted_and_what_is_kept_is_sound(
    segments: list[Segment], duration: float | None
) -> None:
    skipped = Skipped()
    kept = sound(segments, "v", duration, skipped)
    assert len(kept) + skipped.counts.total() == len(segments)
    assert list(kept) == sorted(kept, key=lambda segment: segment.start)
    for segment in kept:
        assert segment.start >= 0 and segment.text.strip()
        assert segment.end is None or segment.end > segment.start
        if duration is not None:
            assert segment.start < duration
            assert segment.end is None or segment.end <= duration
    assert sound(kept, "v", duration, Skipped()) == kept


def test_an_end_a_little_beyond_is_the_videos() -> None:
    skipped = Skipped()
    segments = [Segment(8, "a", 10 + SLACK / 2), Segment(9, "b", 10 + 2 * SLACK)]
    assert sound(segments, "v", 10.0, skipped) == (Segment(8, "a", 10.0),)
    assert skipped.first == {"segment beyond the video's end": "v at 9 s"}
