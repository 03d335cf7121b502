"""Files of a run: rows of metrics, TensorBoard events, JSON files."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import tensorboardX
from tensorboardX import event_file_writer

from pfljax.errors import UserError


def write_text(path: pathlib.Path, content: str) -> None:
    """Writes a file atomically."""
    temporary = path.with_suffix(path.suffix + ".partial")
    temporary.write_text(content)
    os.replace(temporary, path)


def write_json(path: pathlib.Path, content: Any) -> None:
    """Writes a JSON file atomically."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_json(path: pathlib.Path) -> Any:
    """Reads a JSON file.

    Raises:
      UserError: The file is not valid JSON.
    """
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); remove it and run again.") from error


def read_rows(path: pathlib.Path) -> list[dict[str, Any]]:
    """Reads the rows of `metrics.jsonl`; a truncated last line is dropped.

    Returns:
      The rows; none if there is no file.

    Raises:
      UserError: Another line is damaged; the rows after it would otherwise be lost silently.
    """
    if not path.exists():
        return []
    *lines, rest = path.read_bytes().split(b"\n")
    rows = [_row(line) for line in lines]
    for number, row in enumerate(rows, 1):
        if row is None or number > 1 and row["round"] <= rows[number - 2]["round"]:
            raise UserError(
                f"Line {number} of {path} is damaged; run the same command again, train.py with "
                "--resume: it rewrites the file from the latest checkpoint."
            )
    last = _row(rest) if rest else None
    return rows if last is None else [*rows, last]


def _row(line: bytes) -> dict[str, Any] | None:
    """Returns the row in a line of `metrics.jsonl`; None if it is invalid."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and type(row.get("round")) is int else None


def digest(*contents: Any) -> str:
    """Returns a checksum of several byte strings: 32 hexadecimal digits."""
    found = hashlib.blake2b(digest_size=16)
    for content in contents:
        found.update(content)
    return found.hexdigest()


def with_checksums(content: dict[str, Any], files: Sequence[pathlib.Path]) -> dict[str, Any]:
    """Returns the content of a JSON file with its checksum and those of other files."""
    beside = {path.name: digest(path.read_bytes()) for path in files}
    content = {**content, "checksums": beside}
    content["checksums"] = {**beside, "this": digest(json.dumps(content).encode())}
    return content


def is_intact(content: dict[str, Any], directory: pathlib.Path) -> bool:
    """Whether the result of `with_checksums`, and the other files, are unchanged.

    Args:
      content: The content of a JSON file; without checksums it counts as intact.
      directory: The directory of the files.
    """
    checksums = content.get("checksums")
    if checksums is None:
        return True
    try:
        beside = dict(checksums)
        own = beside.pop("this")
        if digest(json.dumps({**content, "checksums": beside}).encode()) != own:
            return False
        return all(digest((directory / name).read_bytes()) == kept for name, kept in beside.items())
    except (OSError, ValueError, TypeError, KeyError):
        return False


class MetricsWriter:
    """Appends a row per evaluated round to `metrics.jsonl`, and scalars to TensorBoard.

    Args:
      workdir: The work directory of the run.
      rows: The rows from before a resumption. The files are rewritten and start with them: a killed
        process loses events in memory, and TensorBoard would lack their steps.
    """

    def __init__(self, workdir: pathlib.Path, rows: Sequence[dict[str, Any]]):
        self._path = workdir / "metrics.jsonl"
        write_text(self._path, "".join(json.dumps(row) + "\n" for row in rows))
        old = [path for path in workdir.iterdir() if path.name.startswith("events.out.tfevents.")]
        for path in old:
            path.unlink()
        # SummaryWriter's thread dies on a full disk, and its caller then waits forever.
        self._events = event_file_writer.EventsWriter(str(workdir / "events"))
        for row in rows:
            self._add(row)

    def write(self, row: dict[str, Any]) -> None:
        """Writes one row; its key 'round' is the step."""
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self._add(row)

    def _add(self, row: dict[str, Any]) -> None:
        for name, value in row.items():
            if name != "round" and value is not None:
                scalar = tensorboardX.summary.scalar(name, value)
                event = tensorboardX.proto.event_pb2.Event(
                    wall_time=time.time(), step=row["round"], summary=scalar
                )
                self._events.write_event(event)
        self._events.flush()

    def close(self) -> None:
        """Flushes the files."""
        self._events.close()
