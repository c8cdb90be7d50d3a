"""COIN's five tasks as VideoLLM-online puts them (CVPR 2024): a question about a part of a video.

step        the step that is shown
next        the step after the one that is shown
task        what the whole of the video is about
procedure   the steps, at most five, after the one that is shown
procedure+  the same, told what the whole is about

The question is asked at the part's end, as a session is asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from train.data.annotations import AnnotatedVideo, Dialogue, Segment, Turn

TASKS = ("step", "next", "task", "procedure", "procedure+")
MOST_STEPS = 5
BRIEF = "Answer with its name alone."
LISTED = "Answer with a numbered list of their names, one a line."


@dataclass(frozen=True)
class Asked:
    """What is shown and asked, with the true answer as its second turn; `steps` are what it names."""

    dialogue: Dialogue
    steps: tuple[str, ...]


def questions(task: str, videos: Iterable[AnnotatedVideo]) -> list[Asked]:
    """Every question of a task of `TASKS`. ValueError for another, and where no video tells its task."""
    if task not in TASKS:
        raise ValueError(f"COIN has no task {task!r}; there are {', '.join(TASKS)}")
    return [asked for video in videos for asked in _of_video(task, video)]


def labels(task: str, videos: Iterable[AnnotatedVideo]) -> list[str]:
    """All that an answer may name, sorted."""
    if task == "task":
        return sorted({sentence(video.task) for video in videos})
    return sorted({sentence(segment.text) for video in videos for segment in video.segments})


def sentence(name: str) -> str:
    """A label as it is said."""
    return f"{name[:1].upper()}{name[1:]}."


def numbered(steps: Iterable[str]) -> str:
    """Steps as a numbered list, the way in which several are said."""
    return "\n".join(f"{number}. {step}" for number, step in enumerate(steps, 1))


def _of_video(task: str, video: AnnotatedVideo) -> Iterator[Asked]:
    if task in ("task", "procedure+") and not video.task:
        raise ValueError(
            f"{video.video} doesn't tell what the whole of it is about; this task needs COIN's classes"
        )
    segments = video.segments
    if task == "task":
        whole = Segment(segments[0].start, "", max(_end(segment) for segment in segments))
        yield _asked(video, whole, f"What is the video about as a whole? {BRIEF}", [video.task])
        return
    for index, segment in enumerate(segments):
        following = [later.text for later in segments[index + 1 : index + 1 + MOST_STEPS]]
        if task == "step":
            yield _asked(video, segment, f"What is being done? {BRIEF}", [segment.text])
        elif following and task == "next":
            yield _asked(video, segment, f"What is done next? {BRIEF}", following[:1])
        elif following:
            aim = f"The aim is to {video.task}. " if task == "procedure+" else ""
            what = f"What is done next? {BRIEF}"
            if len(following) > 1:
                what = f"What are the next {len(following)} steps? {LISTED}"
            yield _asked(video, segment, aim + what, following)


def _asked(video: AnnotatedVideo, shown: Segment, question: str, names: list[str]) -> Asked:
    steps = tuple(sentence(name) for name in names)
    answer = steps[0] if len(steps) == 1 else numbered(steps)
    end = _end(shown)
    turns = (Turn(end, "user", question), Turn(end, "assistant", answer))
    return Asked(Dialogue(video.video, shown.start, end, turns), steps)


def _end(segment: Segment) -> float:
    if segment.end is None:
        raise ValueError(f"a step at {segment.start:g} s without an end; COIN's annotation has both")
    return segment.end
