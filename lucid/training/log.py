"""What happened in a run, as JSON lines."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class Log:
    """A file of JSON lines, one for each step and each evaluation.

    Parameters
    ----------
    path : Path

    Notes
    -----
    A run that is resumed does some steps again. `rewind` first takes out what the log says of them, so that a log reads as if
    the run had never stopped.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, record: dict[str, Any]) -> None:
        """Add a line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """Return all records; a line that was cut short is none."""
        return [record for record, _ in self._lines()]

    def rewind(self, step: int, evaluated: int) -> None:
        """Take out the steps after `step`, and the evaluations after step `evaluated`."""
        if not self.path.exists():
            return
        kept = [line for record, line in self._lines() if record["step"] <= (evaluated if "validation" in record else step)]
        new = self.path.with_name(self.path.name + ".new")
        with new.open("w", encoding="utf-8") as file:
            file.writelines(kept)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, self.path)

    def _lines(self) -> list[tuple[dict[str, Any], str]]:
        lines = []
        if self.path.exists():
            for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
                try:
                    record = json.loads(line)
                except ValueError:
                    continue
                if isinstance(record, dict) and "step" in record and line.endswith("\n"):
                    lines.append((record, line))
        return lines
