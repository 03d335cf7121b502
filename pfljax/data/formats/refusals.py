"""What the readers of all formats ask of a path, and the sentences that refuse a file."""

from __future__ import annotations

from pathlib import Path

from pfljax.errors import UserError


def given(path: str, what: str) -> Path:
    """Returns the user's path to `what`; an empty one costs a `UserError`."""
    if not path:
        raise UserError(f"This data set is {what}: name it in data.dir.")
    return Path(path).expanduser()


def unreadable(file: Path, error: OSError) -> UserError:
    """Returns the sentence for a file that the system does not let us read."""
    return UserError(f"{file} cannot be read ({error.strerror or error}): check its path.")


def faulty(file: Path | str, fault: str, remedy: str) -> UserError:
    """Returns the sentence for a file whose content cannot be meant."""
    return UserError(f"{file} {fault}: {remedy}.")
