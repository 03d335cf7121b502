"""What a run leaves on disk: rows of metrics, TensorBoard events, JSON files."""

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
    """Writes a file whole or not at all."""
    temporary = path.with_suffix(path.suffix + ".partial")
    temporary.write_text(content)
    os.replace(temporary, path)


def write_json(path: pathlib.Path, content: Any) -> None:
    """Writes a JSON file whole or not at all."""
    write_text(path, json.dumps(content, indent=2) + "\n")


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
    """Reads the rows of `metrics.jsonl`; a last line cut short by a preemption is left out.

    Returns:
      The rows; none where there is no file.

    Raises:
      UserError: another line is damaged. Rows behind it would otherwise be lost without a word.
    """
    if not path.exists():
        return []
    *lines, rest = path.read_bytes().split(b"\n")
    rows = [_row(line) for line in lines]
    for number, row in enumerate(rows, 1):
        if row is None or number > 1 and row["round"] <= rows[number - 2]["round"]:
            raise UserError(
                f"Line {number} of {path} is damaged; run the same command again, train.py with "
                "--resume: it writes the file anew from the newest checkpoint."
            )
    last = _row(rest) if rest else None
    return rows if last is None else [*rows, last]


def _row(line: bytes) -> dict[str, Any] | None:
    """Returns a line of `metrics.jsonl`; None where it is none."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and type(row.get("round")) is int else None


def digest(*contents: Any) -> str:
    """Returns a checksum of bytes, one after another: 32 hexadecimal digits."""
    found = hashlib.blake2b(digest_size=16)
    for content in contents:
        found.update(content)
    return found.hexdigest()


def sealed(content: dict[str, Any], files: Sequence[pathlib.Path]) -> dict[str, Any]:
    """Returns the content of a JSON file with its checksum and those of files beside it."""
    beside = {path.name: digest(path.read_bytes()) for path in files}
    content = {**content, "checksums": beside}
    content["checksums"] = {**beside, "this": digest(json.dumps(content).encode())}
    return content


def is_intact(content: dict[str, Any], directory: pathlib.Path) -> bool:
    """Whether what `sealed` returned, and the files beside it, are as they were then.

    Args:
      content: read from a JSON file; without checksums it counts as intact.
      directory: that holds the files.
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
      workdir: of the run.
      rows: those from before a resumption. The files are written anew and begin with them: a
        process that is killed leaves events in its memory, and TensorBoard would miss their steps.
    """

    def __init__(self, workdir: pathlib.Path, rows: Sequence[dict[str, Any]]):
        self._path = workdir / "metrics.jsonl"
        write_text(self._path, "".join(json.dumps(row) + "\n" for row in rows))
        old = [path for path in workdir.iterdir() if path.name.startswith("events.out.tfevents.")]
        for path in old:
            path.unlink()
        # SummaryWriter's thread dies on a full disk, and its caller then waits for ever.
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
        """Writes out what is still in memory."""
        self._events.close()
