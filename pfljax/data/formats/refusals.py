"""Errors for paths and files that all formats share."""

from __future__ import annotations

from pathlib import Path

from pfljax.errors import UserError


def given(path: str, what: str) -> Path:
    """Returns the user's path to `what`; an empty one raises a `UserError`."""
    if not path:
        raise UserError(f"The path is empty: pass {what}, in configs with data.dir.")
    return Path(path).expanduser()


def unreadable(file: Path, error: OSError) -> UserError:
    """Returns the error for a file that cannot be read."""
    return UserError(f"{file} cannot be read ({error.strerror or error}): check its path.")


def faulty(file: Path | str, fault: str, remedy: str) -> UserError:
    """Returns the error for a file with invalid content."""
    return UserError(f"{file} {fault}: {remedy}.")
