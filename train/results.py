"""Figures of a long measurement, kept as they come: a stopped run goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from videollm.files import write_whole


class Results:
    """Rows by name in a JSON file, beside the `settings` that they were measured with and the
    `machine`; without a file, in memory. A row from another machine than the first one's names its own.

    ValueError for a file of other settings.
    """

    def __init__(self, path: Path | None, settings: dict[str, Any], machine: dict[str, Any]) -> None:
        self._path = path
        self._elsewhere: dict[str, Any] = {}
        self.facts = {"machine": machine, "settings": settings}
        self.rows: dict[str, dict[str, Any]] = {}
        if path is None or not path.is_file():
            return
        try:
            kept = json.loads(path.read_text())
            its_settings, its_machine, rows = kept["settings"], kept["machine"], kept["rows"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} holds no such figures; name another file") from error
        # What JSON makes of them, lists of tuples for one.
        ours = json.loads(json.dumps(settings))
        differing = [name for name in ours if its_settings.get(name) != ours[name]]
        if differing:
            raise ValueError(f"{path} was measured with another {', '.join(differing)}; name another file")
        if _undated(its_machine) != _undated(machine):
            self.facts["machine"], self._elsewhere = its_machine, {"machine": machine}
        self.rows = rows

    def add(self, name: str, row: dict[str, Any]) -> None:
        """Keep a row. OSError where it can't be written; what was there is whole then."""
        self.rows[name] = row | self._elsewhere
        if self._path is None:
            return
        text = json.dumps(self.facts | {"rows": self.rows}, indent=1) + "\n"
        write_whole(self._path, text.encode())


def _undated(machine: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in machine.items() if name != "date"}
