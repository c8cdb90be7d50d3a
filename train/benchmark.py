"""Measures the default model into benchmarks/pocket.md and .json: `python -m train.benchmark --data FOLDER`.

Everything is drawn by seeds, photographs and footage from the held-out split, so that a run gives the same
figures again.
"""

from __future__ import annotations

import copy
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import av
import numpy as np
import skimage.data
import sklearn.datasets
import torch
import typer
from rich.progress import track

from stream.frames import Event, Frame
from stream.session import Session
from stream.sources import open_source
from stream.sources.square import pad_to_square
from train.captioner import Captioner
from train.compose import FPS, SIZE, Composition, compose, pan
from train.language import answers, questions
from train.media import Media, Photograph, load_media, pedestrians
from train.options import Data
from train.report import render
from train.scoring import NarrationScore
from train.vocabulary import Vocabulary, load_vocabulary
from videollm.cli.loading import load_session

# Far from the training clips' seeds, which count from 0.
CLIP_SEED = 1_000_000
CLIPS = 200
QUESTION_CLIPS = 100
PHOTOGRAPHS = 300
PAN_FRAMES = 10  # five seconds
STILL_FRAMES = 120  # a minute
LONG_FRAMES = 600  # five minutes: several contexts
STILLS = 5
COMPARED_CLIPS = 60
WINDOWS, WINDOW_SECONDS = 10, 10
# Photographs of installed packages, and words that would be true of them. Written down before the first run.
PACKAGED = {
    "astronaut": "person|woman|astronaut|space suit|face",
    "camera": "person|man|tripod|camera|photographer",
    "chelsea": "cat",
    "coffee": "coffee|espresso|cup",
    "rocket": "rocket|missile|projectile",
    "coins": "coin",
    "motorcycle": "motorcycle|motorbike|moped|motor scooter|engine",
    "china": "temple|palace|pagoda|building|tower|monastery",
    "flower": "flower|dahlia|daisy",
    "hubble": "star|galaxy|outer space|night sky",
}


def watch(session: Session, frames: np.ndarray) -> list[Event]:
    """What a fresh session says about frames [frames, height, width, 3] at the model's rate."""
    session.reset()
    return [
        event for index, pixels in enumerate(frames) for event in session.step(Frame(index / FPS, pixels))
    ]


def told(clip: Composition, events: list[Event]) -> dict[str, Any]:
    """What happened in a clip and what was said of it, to be read."""
    return {
        "kind": clip.kind,
        "happened": [f"{h.time:.1f} {h.name} {h.kind}" for h in clip.happenings],
        "said": [f"{event.time:.1f} {event.text}" for event in events],
    }


def composed(session: Session, media: Media, vocabulary: Vocabulary) -> dict[str, Any]:
    """Narration of clips never trained on, and of the same labels with other clips' frames."""
    clips: list[Composition] = []
    said: list[list[Event]] = []
    for seed in track(range(CLIP_SEED, CLIP_SEED + CLIPS), "composed clips"):
        clip = compose(media, seed)
        clips.append(clip)
        said.append(watch(session, clip.frames))
    right, shuffled = NarrationScore(), NarrationScore()
    kinds: dict[str, NarrationScore] = {}
    for index, clip in enumerate(clips):
        right.add(clip.happenings, said[index], vocabulary)
        # The next clip's tokens under this clip's labels: what could be had without looking.
        shuffled.add(clip.happenings, said[(index + 1) % len(said)], vocabulary)
        kinds.setdefault(clip.kind, NarrationScore()).add(clip.happenings, said[index], vocabulary)
    examples = [told(clip, events) for clip, events in list(zip(clips, said, strict=True))[:40]]
    return {
        "pocket": right.row(),
        "shuffled": shuffled.row(),
        "by_kind": {kind: score.row() for kind, score in sorted(kinds.items())},
        "examples": examples,
    }


def compared(session: Session, media: Media, vocabulary: Vocabulary) -> dict[str, Any]:
    """The same clips narrated by what people would pick instead (`train.captioner`)."""
    captioner = Captioner()
    ways: dict[str, Callable[[np.ndarray], list[Event]]] = {
        "pocket": lambda frames: watch(session, frames),
        "SmolLM2, told the names every second": captioner.told,
        "the best name, when it changes": captioner.names_alone,
    }
    scores = {way: NarrationScore() for way in ways}
    examples = []
    for seed in track(range(CLIP_SEED, CLIP_SEED + COMPARED_CLIPS), "compared"):
        clip = compose(media, seed)
        said = {way: narrate(clip.frames) for way, narrate in ways.items()}
        for way, events in said.items():
            scores[way].add(clip.happenings, events, vocabulary)
        examples.append({way: told(clip, events) for way, events in said.items()})
    return {
        "clips": COMPARED_CLIPS,
        "ways": {way: score.row() for way, score in scores.items()},
        "examples": examples[:10],
    }


def people(session: Session, vocabulary: Vocabulary) -> dict[str, Any]:
    """Windows of the second half of a real clip of pedestrians, each a fresh stream; whether a person is
    named in each, and all that is said."""
    with open_source(str(pedestrians()), FPS) as source:
        frames = [frame.pixels for frame in source]
    length = round(WINDOW_SECONDS * FPS)
    windows = []
    for start in np.linspace(len(frames) // 2, len(frames) - length, WINDOWS).round().astype(int):
        events = watch(session, np.stack(frames[start : start + length]))
        said = [f"{event.time:.1f} {event.text}" for event in events]
        named = any(vocabulary.names_thing(event.text, "person") for event in events)
        windows.append({"from": start / FPS, "said": said, "person": named})
    return {"named": sum(window["person"] for window in windows), "windows": windows}


def asked(session: Session, media: Media, vocabulary: Vocabulary) -> dict[str, Any]:
    """Three of the five kinds of questions at a random frame of each clip, each asked alone."""
    right: Counter[str] = Counter()
    total: Counter[str] = Counter()
    examples = []
    for seed in track(range(CLIP_SEED, CLIP_SEED + QUESTION_CLIPS), "questions"):
        clip, rng = compose(media, seed), np.random.default_rng(seed)
        index = int(rng.integers(3, len(clip.frames)))
        options = questions(clip, index, rng)
        watch(session, clip.frames[: index + 1])
        for number in rng.permutation(len(options))[:3]:
            question = options[number]
            fork = copy.deepcopy(session, {id(session.model): session.model})
            fork.ask(question.text)
            said = fork.finish()[-1].text
            good = answers(question, said, vocabulary)
            right[question.kind] += good
            total[question.kind] += 1
            examples.append(
                {"question": question.text, "expected": question.answer, "said": said, "right": good}
            )
    return {
        "by_kind": {
            kind: {"asked": total[kind], "right": right[kind] / total[kind]} for kind in sorted(total)
        },
        "examples": examples[:60],
    }


def photographs(session: Session, media: Media, vocabulary: Vocabulary) -> dict[str, Any]:
    """Held-out photographs, each panned for five seconds; the first thing said must name it."""
    rng = np.random.default_rng(CLIP_SEED)
    pool: list[Photograph] = [p for p in media.photographs if p.source.startswith(("caltech", "grocery"))]
    chosen = [pool[index] for index in rng.permutation(len(pool))[:PHOTOGRAPHS]]
    total: Counter[str] = Counter()
    right: Counter[str] = Counter()
    more, wrong = 0, []
    for photograph in track(chosen, "photographs"):
        source = photograph.source.split("/")[0]
        events = watch(session, pan(photograph.pixels(), PAN_FRAMES, rng))
        first = events[0].text if events else ""
        good = vocabulary.names_thing(first, photograph.name)
        total[source] += 1
        right[source] += good
        more += max(0, len(events) - 1)
        if not good:
            wrong.append({"file": photograph.source, "is": photograph.name, "said": first})
    return {
        "right": sum(right.values()) / sum(total.values()),
        "by_source": {source: right[source] / total[source] for source in sorted(total)},
        "further_narrations_each": more / len(chosen),
        "wrong": wrong,
    }


def packaged(session: Session) -> list[dict[str, Any]]:
    """Photographs that come with installed packages: what is said, word for word."""
    pictures = {
        "china": sklearn.datasets.load_sample_image("china.jpg"),
        "flower": sklearn.datasets.load_sample_image("flower.jpg"),
        "hubble": skimage.data.hubble_deep_field(),
        "motorcycle": skimage.data.stereo_motorcycle()[0],
    }
    rows = []
    for name, words in PACKAGED.items():
        picture = pictures[name] if name in pictures else getattr(skimage.data, name)()
        if picture.ndim == 2:
            picture = np.repeat(picture[..., None], 3, axis=2)
        rng = np.random.default_rng(CLIP_SEED)
        events = watch(session, pan(np.ascontiguousarray(picture), PAN_FRAMES, rng))
        said = " / ".join(event.text for event in events)
        good = re.search(rf"\b({words})(s|es)?\b", said, re.IGNORECASE) is not None
        rows.append({"picture": name, "said": said, "true": good})
    return rows


def quiet(session: Session, media: Media) -> dict[str, Any]:
    """A minute of a still scene, of the same picture; and a minute of black."""
    rng = np.random.default_rng(CLIP_SEED)
    stills = []
    for index in rng.permutation(len(media.photographs))[:STILLS]:
        picture = pad_to_square(media.photographs[index].pixels(), SIZE)
        events = watch(session, np.repeat(picture[None], STILL_FRAMES, axis=0))
        stills.append(
            {"is": media.photographs[index].name, "said": [f"{e.time:.1f} {e.text}" for e in events]}
        )
    long = watch(session, np.repeat(picture[None], LONG_FRAMES, axis=0))
    stills.append(
        {
            "is": f"the last one, {LONG_FRAMES / FPS / 60:g} min",
            "said": [f"{e.time:.1f} {e.text}" for e in long],
        }
    )
    black = watch(session, np.zeros((STILL_FRAMES, SIZE, SIZE, 3), np.uint8))
    return {"stills": stills, "black": [f"{event.time:.1f} {event.text}" for event in black]}


def speed(model: str, media: Media) -> dict[str, Any]:
    """The whole loop on a clip of composed scenes, with mixture-of-depths on and off, in turn."""
    frames = np.concatenate([compose(media, CLIP_SEED + seed, "scene").frames for seed in range(4)])
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.mp4"
        write_clip(clip, frames)
        rows: dict[str, list[dict[str, float]]] = {"on": [], "off": []}
        for _ in range(3):
            for depth, flags in (("on", []), ("off", ["--dense"])):
                command = [sys.executable, "-m", "train.speed", str(clip), "--model", model, *flags]
                out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                rows[depth].append(json.loads(out.splitlines()[-1]))
    return rows


def write_clip(path: Path, frames: np.ndarray, rate: int = 30) -> None:
    """Frames at the model's rate as an H.264 clip of 30 frames a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("h264", rate=rate, options={"crf": "23"})
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        for pixels in frames:
            for _ in range(round(rate / FPS)):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def machine() -> dict[str, str]:
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    return {
        "date": date.today().isoformat(),
        "cpu": f"{model}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def main(
    data: Data,
    out: Annotated[Path, typer.Option(help="where the tables go")] = Path("benchmarks"),
    model: Annotated[str, typer.Option(help="the model to measure")] = "pocket",
    only: Annotated[list[str] | None, typer.Option(help="just these parts")] = None,
) -> None:
    """Measure the default model and write the tables."""
    media, vocabulary = load_media(data, "heldout"), load_vocabulary()
    session = load_session(model, "auto")
    parts: dict[str, Callable[[], Any]] = {
        "speed": lambda: speed(model, media),
        "quiet": lambda: quiet(session, media),
        "packaged": lambda: packaged(session),
        "composed": lambda: composed(session, media, vocabulary),
        "photographs": lambda: photographs(session, media, vocabulary),
        "questions": lambda: asked(session, media, vocabulary),
        "people": lambda: people(session, vocabulary),
        "compared": lambda: compared(session, media, vocabulary),
    }
    if unknown := set(only or ()) - parts.keys():
        message = f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(parts)}"
        raise typer.BadParameter(message, param_hint="--only")
    path = out / "pocket.json"
    results = json.loads(path.read_text()) if path.is_file() and only else {}
    circumstances = {"machine": machine(), "model": model, "threshold": session.threshold}
    before = {name: results[name] for name in circumstances if name in results}
    if before and before != circumstances:
        message = f"{path} was measured otherwise ({before}); measure all parts, or name another --out"
        raise typer.BadParameter(message, param_hint="--only")
    results |= circumstances
    out.mkdir(parents=True, exist_ok=True)
    for name in only or list(parts):
        results[name] = parts[name]()
        path.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    (out / "pocket.md").write_text(render(results))
    print(render(results))


if __name__ == "__main__":
    typer.run(main)
