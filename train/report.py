"""The benchmark's results as the Markdown of benchmarks/pocket.md."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any


def render(results: dict[str, Any]) -> str:
    """All parts that were measured, goals beside figures."""
    facts = results["machine"]
    lines = [
        "# The default model, measured",
        "",
        f"{facts['date']}, {facts['cpu']}, Python {facts['python']}, PyTorch {facts['torch']}, threshold "
        f"{results['threshold']}. Made by `make bench`; seeds and split are in `train/benchmark.py` and "
        "`train/media.py`, everything said is in `pocket.json`.",
    ]
    for name, part in SECTIONS.items():
        if name in results:
            lines += ["", *part(results[name])]
    return "\n".join(lines) + "\n"


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


SCORED = [
    "",
    "events",
    "named right",
    "narrated",
    "mean TimeDiff",
    "false narrations an event",
    "things too many an event",
]


def _scored(name: str, score: dict[str, float]) -> list[str]:
    return [
        name,
        f"{score['events']:.0f}",
        f"{score['named']:.1%}",
        f"{score['narrated']:.1%}",
        f"{score['time_diff']:.2f} s",
        f"{score['false_per_event']:.2f}" if score["events"] else f"{score['false']:.0f} in all",
        f"{score['extra_per_event']:.2f}",
    ]


def _composed(part: dict[str, Any]) -> list[str]:
    rows = [
        ["goal", "", "85 %", "92 %", "0.6 s", "0.08", ""],
        _scored("pocket", part["pocket"]),
        _scored("frames of another clip", part["shuffled"]),
        *(_scored(f"pocket, {kind}", score) for kind, score in part["by_kind"].items()),
    ]
    return [
        "## 200 composed clips never trained on",
        "New compositions, backgrounds and photographs; the cut-outs are those of training. An event is a "
        "thing that appears or leaves; it is "
        "named right when the narration of its moment names it by a name of `train/vocabulary.txt`, and says "
        "that it leaves where it does. What a narration lists beyond as many things as happened are things "
        "too many.",
        "",
        *table(SCORED, rows),
    ]


def _photographs(part: dict[str, Any]) -> list[str]:
    sources = ", ".join(f"{source} {share:.1%}" for source, share in part["by_source"].items())
    return [
        "## 300 photographs never trained on",
        f"Each panned for five seconds; the first narration names the thing in **{part['right']:.1%}** "
        f"(goal 88 %): {sources}. Further narrations of the same picture: "
        f"{part['further_narrations_each']:.2f} each.",
    ]


def _packaged(part: list[dict[str, Any]]) -> list[str]:
    rows = [[row["picture"], row["said"] or "(silence)", "yes" if row["true"] else "no"] for row in part]
    return [
        "## Ten photographs of installed packages, word for word",
        f"True of {sum(row['true'] for row in part)} of {len(part)}.",
        "",
        *table(["picture", "what it says", "true"], rows),
    ]


def _quiet(part: dict[str, Any]) -> list[str]:
    rows = [[f"still: {still['is']}", " / ".join(still["said"]) or "(silence)"] for still in part["stills"]]
    rows.append(["black", " / ".join(part["black"]) or "(silence)"])
    return ["## A minute of nothing new", *table(["scene", "all that is said"], rows)]


def _questions(part: dict[str, Any]) -> list[str]:
    rows = [[kind, f"{score['asked']}", f"{score['right']:.1%}"] for kind, score in part["by_kind"].items()]
    asked = sum(score["asked"] for score in part["by_kind"].values())
    right = sum(score["asked"] * score["right"] for score in part["by_kind"].values())
    rows.append(["all", f"{asked}", f"{right / asked:.1%}"])
    return [
        "## Five kinds of questions on the held-out clips (goal 75 %)",
        *table(["kind", "asked", "right"], rows),
    ]


def _speed(part: dict[str, list[dict[str, float]]]) -> list[str]:
    rows = []
    for depth, runs in part.items():
        rates = [run["frames_per_second"] for run in runs]
        rows.append(
            [
                f"mixture-of-depths {depth}",
                f"{median(rates):.2f} ({min(rates):.2f} to {max(rates):.2f})",
                f"{runs[0]['sayings']:.0f}",
                f"{runs[0]['cache_mib']:.1f} MiB",
                f"{median(run['peak_memory_mib'] for run in runs):.0f} MiB",
            ]
        )
    ratio = median(r["frames_per_second"] for r in part["on"]) / median(
        r["frames_per_second"] for r in part["off"]
    )
    return [
        "## The whole loop",
        f"{part['on'][0]['frames']:.0f} frames of an H.264 clip, decoding and speaking included, "
        f"{len(part['on'])} runs of each in turn, median and spread (goal: at least 3 frames/s). "
        f"On against off: {ratio:.2f}x.",
        "",
        *table(
            [
                "",
                "frames/s",
                "sayings",
                "cache at the end",
                "peak memory",
            ],
            rows,
        ),
    ]


def _people(part: dict[str, Any]) -> list[str]:
    windows = part["windows"]
    rows = [[f"{window['from']:.1f}", " / ".join(window["said"]) or "(silence)"] for window in windows]
    return [
        "## Pedestrians",
        f"Ten seconds each of the second half of `vtest.avi` (Debian's `opencv-doc`), each a stream of its "
        f"own: people are named in {part['named']} of {len(windows)} (goal 8).",
        "",
        *table(["from second", "said"], rows),
    ]


def _compared(part: dict[str, Any]) -> list[str]:
    return [
        "## What people would pick instead",
        f"The first {part['clips']} of the same clips, told by the parts that `pocket` is made of, "
        "untrained: the vision tower's own names of the whole picture, once a second, and SmolLM2 that is "
        "told the three likeliest and asked what is new.",
        "",
        *table(SCORED, [_scored(way, score) for way, score in part["ways"].items()]),
    ]


SECTIONS: dict[str, Callable[[Any], list[str]]] = {
    "composed": _composed,
    "photographs": _photographs,
    "packaged": _packaged,
    "quiet": _quiet,
    "questions": _questions,
    "people": _people,
    "compared": _compared,
    "speed": _speed,
}
