"""`videollm evaluate`, the real command: a small random model on composed clips and files in true layouts."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pytest
import torch
from conftest import small_model
from small_media import small_media

from stream import session
from stream.session import Session
from stream.sources.square import pad_to_square
from train import narrating
from train.benchmark import write_clip
from train.compose import FPS, Composition, compose
from train.data.annotations import AnnotatedVideo, Segment
from train.data.dialogue_sequence import dialogue_sequence
from train.data.dialogues import narration_dialogues
from train.data.encoding import encode
from train.data.shards import Encoding, ShardWriter, VideoFeatures, write_shard
from train.evaluation import asking
from train.evaluation.composed import composed_dialogue, composed_metrics
from train.evaluation.dialogues import score
from train.evaluation.feature_stream import FeatureStream
from train.evaluation.narration import NarrationBench
from train.metrics.streaming import METRICS, mean_scores
from videollm import VideoLLM
from videollm.cli import run

SEEDS = range(2)
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model would hardly ever end."""
    monkeypatch.setattr(asking, "ANSWER_TOKENS", 6)
    for module in (narrating, session):
        monkeypatch.setattr(module, "MAX_REPLY_TOKENS", 6)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Composition]:
    media = small_media(tmp_path_factory.mktemp("stamps"))
    return [compose(media, seed, "scene") for seed in SEEDS]


@pytest.fixture(scope="module")
def model() -> VideoLLM:
    made = small_model(router="top_k", ratio=0.3)
    made.config.vision_name = "tiny"
    with torch.no_grad():  # silent at most frames, as it should be
        made.lm_head.weight[made.tokenizer(",")["input_ids"][-1]] *= 1.5  # type: ignore[misc]
    return made


@pytest.fixture(scope="module")
def checkpoint(model: VideoLLM, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    model.save_pretrained(folder)
    return str(folder)


def features(model: VideoLLM, clip: Composition) -> np.ndarray:
    small = np.stack([pad_to_square(frame, 32) for frame in clip.frames])
    return encode(model.vision_tower, small)


def annotated(clip: Composition) -> AnnotatedVideo:
    """What happens lasts to the clip's end, so that all of it is watched."""
    end = len(clip.sights) / FPS
    segments = tuple(Segment(turn.time, turn.text, end) for turn in composed_dialogue(clip).turns)
    return AnnotatedVideo(f"clip-{clip.seed}", segments, end, "val")


def prepared(
    folder: Path, model: VideoLLM, clips: Sequence[Composition], annotation: list[AnnotatedVideo]
) -> str:
    """The folder that `videollm prepare` leaves, of composed clips."""
    videos = {
        video.video: VideoFeatures(
            features(model, clip), np.arange(len(clip.sights)) / FPS, len(clip.sights) / FPS
        )
        for video, clip in zip(annotation, clips, strict=True)
    }
    with ShardWriter(folder, Encoding("tiny", 32, FPS), annotation) as writer:
        writer.add(write_shard(writer.new_path(), videos))
    return str(folder)


@pytest.fixture(scope="module")
def narrated(model: VideoLLM, clips: list[Composition], tmp_path_factory: pytest.TempPathFactory) -> str:
    annotation = [annotated(clip) for clip in clips]
    return prepared(tmp_path_factory.mktemp("prepared") / "clips", model, clips, annotation)


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_narration_leaves_figures_table_and_plots(
    checkpoint: str, narrated: str, clips: list[Composition], model: VideoLLM, tmp_path: Path
) -> None:
    write_clip(tmp_path / "clip-0.mp4", clips[0].frames)
    out = tmp_path / "out"
    arguments = ["evaluate", checkpoint, "narration", "--data", narrated, "--out", str(out)]
    assert run([*arguments, "--videos", str(tmp_path)]) == 0
    summary, results = read(out / "summary.json"), read(out / "results.json")
    assert summary["measured"] == summary["items"] == len(SEEDS) == len(results["rows"])
    dialogues = [dialogue for row in results["rows"].values() for dialogue in row["dialogues"]]
    # What the command reads from disk is what comes of the clips themselves.
    stream, known = FeatureStream(model), []
    for clip in clips:
        (dialogue,) = narration_dialogues([annotated(clip)], FPS, 40.0)
        sequence = dialogue_sequence(stream.prompt, dialogue, features(model, clip), FPS)
        known.append(mean_scores(score(stream, sequence, FPS, model.config.threshold)))
    for name in METRICS:
        expected = pytest.approx(mean(scores[name] for scores in known), rel=1e-4)
        assert summary["figures"][name] == expected
        assert mean(dialogue["metrics"][name] for dialogue in dialogues) == expected
    assert f"| lm_ppl | {summary['figures']['lm_ppl']:.4g} |" in (out / "table.md").read_text()
    timeline = ElementTree.fromstring((out / "plots" / "clip-0-timeline.svg").read_text())
    told = len(dialogues[0]["true"]) + len(dialogues[0]["said"])
    assert len(timeline.findall(f"{SVG}circle")) == told
    kept = ElementTree.fromstring((out / "plots" / "clip-0-kept.svg").read_text())
    # Two routing layers of ten tokens, on paper; the frame behind each grid, where there is a clip of it.
    assert len(kept.findall(f"{SVG}rect")) == 2 * 10 + 1
    assert len(kept.findall(f"{SVG}image")) == 2
    bare = ElementTree.fromstring((out / "plots" / "clip-1-kept.svg").read_text())
    assert not bare.findall(f"{SVG}image")
    # Three of each frame's ten tokens run.
    assert all(sum(shares) == pytest.approx(3, abs=1e-3) for shares in dialogues[0]["kept"].values())


def test_an_interrupted_run_keeps_what_it_measured_and_goes_on(
    checkpoint: str, narrated: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["evaluate", checkpoint, "narration", "--data", narrated, "--split", "val", "--out"]
    assert run([*arguments, str(tmp_path / "whole")]) == 0
    measure, measured = NarrationBench.measure, []

    def stopped(self: NarrationBench, item: str) -> dict[str, Any]:
        if len(measured) == 1:
            raise KeyboardInterrupt
        measured.append(item)
        return measure(self, item)

    with monkeypatch.context() as patched:
        patched.setattr(NarrationBench, "measure", stopped)
        assert run([*arguments, str(tmp_path / "cut")]) == 130
    assert list(read(tmp_path / "cut" / "results.json")["rows"]) == measured == ["clip-0"]
    assert read(tmp_path / "cut" / "summary.json")["measured"] == 1
    assert "1 of 2 items" in (tmp_path / "cut" / "table.md").read_text()

    def counted(self: NarrationBench, item: str) -> dict[str, Any]:
        measured.append(item)
        return measure(self, item)

    monkeypatch.setattr(NarrationBench, "measure", counted)
    assert run([*arguments, str(tmp_path / "cut")]) == 0
    assert measured == ["clip-0", "clip-1"]
    whole, cut = (read(tmp_path / name / "summary.json") for name in ("whole", "cut"))
    assert cut["figures"] == pytest.approx(whole["figures"])


@pytest.mark.parametrize("task", ["step", "next", "task", "procedure", "procedure+"])
def test_coin(task: str, checkpoint: str, model: VideoLLM, clips: list[Composition], tmp_path: Path) -> None:
    steps = (Segment(0.0, "pour milk", 1.0), Segment(1.5, "stir", 2.4), Segment(2.4, "drink", 2.45))
    annotation = [
        AnnotatedVideo("a", steps, None, "testing", "make cocoa"),
        AnnotatedVideo("b", steps[:1], None, "training", "spill milk"),
    ]
    data = prepared(tmp_path / "coin", model, clips[:2], annotation)
    out = tmp_path / "out"
    assert (
        run(["evaluate", checkpoint, f"coin-{task}", "--data", data, "--split", "testing", "--out", str(out)])
        == 0
    )
    figures, rows = read(out / "summary.json")["figures"], read(out / "results.json")["rows"]
    assert list(rows) == ["a"]
    answers = rows["a"]["answers"]
    assert figures["questions"] == len(answers) == {"step": 3, "task": 1}.get(task, 2)
    asked = sum(len(answer["true"]) for answer in answers)
    assert asked == {"step": 3, "next": 2, "task": 1}.get(task, 3)
    assert figures["accuracy"] == pytest.approx(100 * sum(answer["right"] for answer in answers) / asked)


def test_anticipation(checkpoint: str, model: VideoLLM, clips: list[Composition], tmp_path: Path) -> None:
    taxonomy = {"verbs": ["take_(pick,_grab)", "turn_on_(switch_on)"], "nouns": ["cup", "stove_(hob)"]}
    (tmp_path / "taxonomy.json").write_text(json.dumps(taxonomy))
    names = ["take cup", "turn on stove"] * 15
    actions = tuple(Segment(n * 0.2, name, n * 0.2 + 0.2) for n, name in enumerate(names[:29]))
    data = prepared(tmp_path / "lta", model, clips[:1], [AnnotatedVideo("a", actions, None, "val")])
    out, arguments = tmp_path / "out", ["evaluate", checkpoint, "anticipation", "--data", data, "--out"]
    assert run([*arguments, str(out), "--taxonomy", str(tmp_path / "taxonomy.json")]) == 0
    figures = read(out / "summary.json")["figures"]
    # 29 actions have two places with eight before and twenty behind.
    assert figures["examples"] == 2
    # Garbage has no numbered lines: the taxonomy's first action, twenty times, of which ten are right.
    assert figures["verb_ed@20"] == figures["noun_ed@20"] == figures["action_ed@20"] == 0.5


HERE = {"video": "a/clip.mp4"}
OVO = [
    HERE | {"id": 0, "task": "EPM", "question": "What?", "options": ["cat", "dog"], "gt": 1, "realtime": 2.0},
    HERE | {"id": 1, "task": "OCR", "question": "Which?", "options": ["1", "2"], "gt": 0, "realtime": 4.2},
    HERE | {"id": 2, "task": "REC", "activity": "jump"},
    {"id": 3, "task": "SSR", "video": "gone.mp4", "test_info": [{"realtime": 1, "step": "pour", "type": 0}]},
    HERE | {"id": 4, "task": "CRR", "question": "Who?", "answer": "She.", "ask_time": 1, "clue_time": 2},
]
OVO[2]["test_info"] = [{"realtime": 1, "count": 0}, {"realtime": 3, "count": 2}]
OVO[4]["test_info"] = [{"realtime": 100, "type": 1}]


def test_ovo_bench_asks_each_question_at_its_moment(
    checkpoint: str,
    clips: list[Composition],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "a").mkdir()
    write_clip(tmp_path / "a" / "clip.mp4", clips[0].frames)
    (tmp_path / "ovo.json").write_text(json.dumps(OVO))
    ask, asked = Session.ask, []

    def noted(self: Session, question: str, time: float | None = None) -> None:
        asked.append((time, self.time))
        ask(self, question, time)

    monkeypatch.setattr(Session, "ask", noted)
    out = tmp_path / "out"
    arguments = ["evaluate", checkpoint, "ovo-bench", "--data", str(tmp_path / "ovo.json")]
    assert run([*arguments, "--videos", str(tmp_path), "--threshold", "0", "--out", str(out)]) == 0
    end = (len(clips[0].frames) - 1) / FPS
    # Of the frames up to the moment, and of none behind it.
    assert asked == [(1, 1.0), (2.0, 2.0), (3, 3.0), (4.2, 4.0), (100, end)]
    assert "1 x video that is missing" in capsys.readouterr().err
    figures = read(out / "summary.json")["figures"]
    assert figures["questions"] == 5
    assert figures.keys() == {
        "EPM",
        "OCR",
        "REC",
        "CRR",
        "backward",
        "realtime",
        "forward",
        "all",
        "questions",
    }


def test_streaming_bench(checkpoint: str, clips: list[Composition], tmp_path: Path) -> None:
    write_clip(tmp_path / "sample_1.mp4", clips[0].frames)
    choice = {
        "task_type": "Object Perception",
        "question": "What?",
        "time_stamp": "00:00:02",
        "answer": "B",
        "options": ["A. cat", "B. dog", "C. owl", "D. cup"],
        "required_ability": "working memory",
    }
    told = {
        "task_type": "Proactive Output",
        "question": "When a cat comes, say so.",
        "time_stamp": "00:00:01",
        "ground_truth_time_stamp": "00:00:02",
        "ground_truth_output": "cat",
    }
    part = {"time": "[0:00:00 - 0:01:00]", "video_categories": "x", "video_path": "./videos/sample_1.mp4"}
    entries = [part | {"questions": [choice]}, [part | {"questions": [told]}]]
    (tmp_path / "questions.json").write_text(json.dumps(entries))
    out = tmp_path / "out"
    arguments = ["evaluate", checkpoint, "streaming-bench", "--data", str(tmp_path / "questions.json")]
    # At threshold 1 it speaks at every frame, so at the first behind the question, half a second before.
    assert run([*arguments, "--videos", str(tmp_path), "--threshold", "1", "--out", str(out)]) == 0
    (row,) = read(out / "results.json")["rows"].values()
    told_row = next(answer for answer in row["answers"] if answer["category"] == "Proactive Output")
    assert told_row["right"] and told_row["said"][1][0] == 1.5
    assert read(out / "summary.json")["figures"]["questions"] == 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["no-bench", "--data", "DATA"], "'no-bench' is not one of"),
        (["narration", "--data", "gone"], "there is no gone"),
        (["narration", "--data", "EMPTY"], "holds nothing prepared"),
        (["narration", "--data", "DATA", "--split", "test"], "no annotated video of split 'test'"),
        (["coin-task", "--data", "DATA"], "doesn't tell what the whole of it is about"),
        (["anticipation", "--data", "DATA"], "--taxonomy"),
        (["ovo-bench", "--data", "EMPTY"], "--videos"),
    ],
)
def test_what_can_not_be_measured_is_told_in_a_line(
    arguments: list[str],
    told: str,
    checkpoint: str,
    narrated: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"DATA": narrated, "EMPTY": str(tmp_path)}
    out = ["--out", str(tmp_path / "out")]
    assert run(["evaluate", checkpoint, *(places.get(a, a) for a in arguments), *out]) != 0
    assert told in " ".join(capsys.readouterr().err.split())


def test_other_settings_do_not_go_on(
    checkpoint: str, narrated: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", checkpoint, "narration", "--data", narrated, "--out", str(tmp_path / "out")]
    assert run(arguments) == 0
    assert run([*arguments, "--threshold", "0.1"]) == 1
    assert "another threshold" in capsys.readouterr().err


def test_a_model_that_sees_otherwise_is_refused(
    narrated: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small_model().save_pretrained(tmp_path / "other")
    arguments = ["evaluate", str(tmp_path / "other"), "narration", "--data", narrated]
    assert run([*arguments, "--out", str(tmp_path / "out")]) == 1
    assert "prepare it anew" in capsys.readouterr().err


def test_composed_clips_have_the_four_metrics(model: VideoLLM, clips: list[Composition]) -> None:
    """As routers are compared: by features of the tower, or by what else embeddings come of."""
    seen = [(clip, features(model, clip)) for clip in clips]
    metrics = composed_metrics(model, seen)
    assert metrics.keys() == set(METRICS) and metrics["lm_ppl"] > 1
    assert 0 <= metrics["fluency"] <= 1 and 0 <= metrics["lm_correctness"] <= 1 and metrics["time_diff"] >= 0
    embedded = [(clip, model.connector(torch.from_numpy(f).float()).detach().numpy()) for clip, f in seen]
    assert composed_metrics(model, embedded, lambda frames: frames) == pytest.approx(metrics, rel=1e-4)
    still = [(clip, f) for clip, f in seen if not clip.happenings]
    with pytest.raises(ValueError, match="nothing happens"):
        composed_metrics(model, still)
