"""What a run leaves on disk: rows of metrics, TensorBoard events, JSON files."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

import tensorboardX

from pfljax.errors import UserError


def write_json(path: pathlib.Path, content: Any) -> None:
    """Writes a JSON file whole or not at all."""
    temporary = path.with_suffix(path.suffix + ".partial")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(temporary, path)


def read_json(path: pathlib.Path) -> Any:
    """Reads a JSON file.

    Raises:
      UserError: it is not valid JSON.
    """
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is no valid JSON ({error}); remove it and run again.") from error


def read_rows(path: pathlib.Path) -> list[dict[str, Any]]:
    """Reads a JSON-lines file; a last line cut short by a preemption is left out."""
    rows = []
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
    return rows


class MetricsWriter:
    """Appends a row per evaluated round to `metrics.jsonl`, and scalars to TensorBoard.

    Args:
      workdir: of the run.
      rows: those to keep, from before a resumption; the files begin with them.
    """

    def __init__(self, workdir: pathlib.Path, rows: list[dict[str, Any]]):
        self._path = workdir / "metrics.jsonl"
        self._path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        self._events = tensorboardX.SummaryWriter(str(workdir), write_to_disk=True)

    def write(self, row: dict[str, Any]) -> None:
        """Writes one row; its key 'round' is the step."""
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        for name, value in row.items():
            if name != "round" and value is not None:
                self._events.add_scalar(name, value, row["round"])

    def close(self) -> None:
        """Writes out what is still in memory."""
        self._events.close()
