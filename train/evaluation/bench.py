"""What every benchmark has in common: items that are measured one by one, and figures over them."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from train.results import Results
from videollm.files import write_whole

Row = dict[str, Any]
RESULTS, SUMMARY, TABLE, PLOTS = "results.json", "summary.json", "table.md", "plots"


class Bench(ABC):
    """A benchmark on one model. A row is all that is kept of an item, as JSON can hold it."""

    items: Sequence[str]
    """Names of what is measured by itself, mostly videos."""

    @abstractmethod
    def measure(self, item: str) -> Row:
        """Run the model on one item."""

    @abstractmethod
    def summary(self, rows: Sequence[Row]) -> dict[str, float]:
        """Figures over the items measured so far, at least one."""

    def plots(self, item: str, row: Row) -> dict[str, str]:
        """SVG pictures of an item that was measured just now, by name."""
        return {}


def evaluate(
    bench: Bench, results: Results, out: Path, told: Callable[[str, dict[str, float]], None]
) -> None:
    """Measure what `results` lack, and leave figures, table and plots in `out`; what stops it leaves those of
    the items that were measured. `told` hears of each item's end and the figures so far."""
    items = [item for item in bench.items if item not in results.rows]
    try:
        for item in items:
            row = bench.measure(item)
            results.add(item, row)
            for name, picture in bench.plots(item, row).items():
                folder = out / PLOTS
                folder.mkdir(exist_ok=True)
                write_whole(folder / f"{_file_name(item)}-{name}.svg", picture.encode())
            told(item, bench.summary(list(results.rows.values())))
    finally:
        if results.rows:
            _report(bench, results, out)


def _report(bench: Bench, results: Results, out: Path) -> None:
    rows = [results.rows[item] for item in bench.items if item in results.rows]
    measured = {"items": len(bench.items), "measured": len(rows)}
    figures = bench.summary(rows)
    text = json.dumps(results.facts | measured | {"figures": figures}, indent=1) + "\n"
    write_whole(out / SUMMARY, text.encode())
    write_whole(out / TABLE, markdown(results.facts["settings"], measured, figures).encode())


def markdown(settings: Row, measured: dict[str, int], figures: dict[str, float]) -> str:
    """A table of the figures, under what they were measured with."""
    told = ", ".join(f"{name} {value}" for name, value in settings.items() if value is not None)
    lines = [
        f"{told}; {measured['measured']} of {measured['items']} items",
        "",
        "| figure | value |",
        "| --- | ---: |",
        *(f"| {name} | {value:.4g} |" for name, value in figures.items()),
    ]
    return "\n".join(lines) + "\n"


def _file_name(item: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in item)
