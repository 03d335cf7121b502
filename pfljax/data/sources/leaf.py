"""The JSON files written by LEAF's scripts, with examples by user."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pfljax.data import reading
from pfljax.data.sources import files
from pfljax.errors import UserError

# Either everything in one directory, or the two directories of LEAF's split.
_LAYOUTS = (("all_data",), ("data/all_data",), ("train", "test"), ("data/train", "data/test"))


def find_leaf(searched: Sequence[Path]) -> list[Path]:
    """Returns LEAF's JSON files, in the order of their names; none if no directory has any."""
    for directory in searched:
        for folders in _LAYOUTS:
            found = [
                sorted((directory / folder).glob("*.json"), key=lambda path: (len(path.name), path))
                for folder in folders
            ]
            if all(found):
                return sum(found, [])
    return []


def read_leaf(paths: Sequence[Path]) -> Iterator[tuple[Path, str, list[Any], list[Any]]]:
    """Yields file, name of the user, inputs and targets, for every file and each of its users.

    Raises:
      UserError: A file is damaged or not LEAF's.
    """
    for path in paths:
        try:
            content = reading.parse_json(files.read_text(path))
            users = [(user, content["user_data"][user]) for user in content["users"]]
            users = [(user, data["x"], data["y"]) for user, data in users]
            if not all(isinstance(each, list) for _, *both in users for each in both):
                raise TypeError("inputs or targets that are not a list")
            # Duplicate users would count twice, and unlisted ones would be lost.
            if sorted(content["users"]) != sorted(content["user_data"]):
                raise ValueError("users that do not match the data")
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} is truncated or not in LEAF's format: run LEAF's preprocessing again."
            ) from error
        for user, inputs, targets in users:
            if len(inputs) != len(targets):
                raise UserError(
                    f"{path} has {len(inputs)} inputs but {len(targets)} targets of {user}: run "
                    "LEAF's preprocessing again."
                )
            yield path, user, inputs, targets
