"""What was measured of the routers as a table, and as the Markdown of benchmarks/routers.md."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from statistics import mean, stdev
from typing import Any

from train.metrics.streaming import METRICS
from train.report import table

COLUMNS = (
    "router",
    "seeds",
    "named",
    "narrated",
    "false an event",
    *METRICS,
    "training, min of a core",
    "step, MiB",
)


def summary(rows: dict[str, dict[str, Any]], routers: tuple[str, ...]) -> list[list[str]]:
    """Of each router what `COLUMNS` name: mean and standard deviation over its seeds. Time and memory are of
    the models that were made on the first one's machine."""
    runs: dict[str, list[list[float]]] = defaultdict(list)
    costs: dict[str, list[list[float]]] = defaultdict(list)
    for name, row in rows.items():
        router = name.rpartition("-")[0]
        said = [row["session"][key] for key in ("named", "narrated", "false_per_event")]
        runs[router].append([*said, *(row["metrics"][key] for key in METRICS)])
        if "machine" not in row:
            costs[router].append([row["training_processor_seconds"] / 60, row["step_mib"]])
    return [
        [router, str(len(runs[router])), *_spreads(runs[router]), *(_spreads(costs[router]) or ["", ""])]
        for router in routers
        if router in runs
    ]


def _spreads(seeds: list[list[float]]) -> list[str]:
    return [_spread(column) for column in zip(*seeds, strict=True)]


def _spread(values: tuple[float, ...]) -> str:
    digits = 3 if max(values) < 10 else 1 if max(values) < 100 else 0
    mid = f"{mean(values):.{digits}f}"
    return f"{mid} ± {stdev(values):.{digits}f}" if len(values) > 1 else mid


def render(rows: dict[str, dict[str, Any]], facts: dict[str, Any], routers: tuple[str, ...]) -> str:
    """The summary, and what the models of seed 0 say of the clips of which it was kept."""
    settings, recipe = facts["settings"], next(iter(rows.values()))
    lines = [
        "# Routers, trained alike",
        "",
        f"{facts['machine']['date']}, {facts['machine']['cpu']}. Each model from nothing, "
        f"{recipe['naming_steps']} steps of slide shows and {recipe['clip_steps']} of clips on the same "
        f"lessons (the default model: 200 and 800), measured on {settings['clips']} composed clips never "
        "trained on; mean and standard deviation over seeds. Named, narrated and false are of a session that "
        "speaks by itself; the four metrics are VideoLLM-online's, teacher-forced. A step's memory is what "
        "it makes beside the weights. Made by `python -m train.router_quality`, everything is in "
        "`routers.json`." + _elsewhere(rows),
        "",
        *table(list(COLUMNS), summary(rows, routers)),
        "",
        "## The same clips, told by each",
    ]
    told = {router: rows[f"{router}-0"]["told"] for router in routers if f"{router}-0" in rows}
    return "\n".join([*lines, *_side_by_side(told)]) + "\n"


def _elsewhere(rows: dict[str, dict[str, Any]]) -> str:
    """Which models are of another machine, as a sentence."""
    names = [name for name, row in rows.items() if "machine" in row]
    if not names:
        return ""
    return (
        f" {', '.join(names)} were made and measured on another machine: they count for what they say, and "
        "not for time and memory."
    )


def _side_by_side(told: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    for number, clips in enumerate(zip(*told.values(), strict=True), start=1):
        yield from ["", f"### Clip {number}, {clips[0]['kind']}", ""]
        said = [[router, _listed(clip["said"])] for router, clip in zip(told, clips, strict=True)]
        yield from table(["", "second and what"], [["happened", _listed(clips[0]["happened"])], *said])


def _listed(entries: list[str]) -> str:
    return " / ".join(entries) or "(nothing)"
