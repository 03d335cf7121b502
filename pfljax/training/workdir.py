"""Whose work directory is it? A run never writes over another one."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import jax
import ml_collections

from pfljax.errors import UserError
from pfljax.training import writers
from pfljax.training.config import planned_rounds

# Keys that may differ between a run and its resumption: they change neither state nor meaning.
_FREE_KEYS = (
    *("algorithms", "seeds", "seeds_vary", "engine"),
    *("eval_every", "checkpoint_every", "rounds", "planned_rounds"),
)

# What the engine chose for the run.
_ENGINE = "engine.json"


def settings(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Returns the part of a config that one run depends on: of the methods only its own.

    The numbers are as JSON keeps them, so that they compare with what was written.
    """
    content = json.loads(config.to_json())
    content["planned_rounds"] = planned_rounds(config)
    for key in ("hparams", "learning_rates"):
        content[key] = {config.algorithm: content[key][config.algorithm]}
    return content


def first_difference(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> str | None:
    """Returns the first key at which two configs differ, with both values; None for equal ones.

    Example:
      >>> first_difference({'a': {'b': 1}}, {'a': {'b': 2}})
      'a.b is 2 here and 1 there'
    """
    for key in sorted(old.keys() | new.keys()):
        if prefix == "" and key in _FREE_KEYS:
            continue
        name = f"{prefix}{key}"
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            difference = first_difference(before, after, f"{name}.")
            if difference:
                return difference
        elif before != after:
            return f"{name} is {after!r} here and {before!r} there"
    return None


def require_same(directory: pathlib.Path, config: ml_collections.ConfigDict) -> None:
    """Raises a `UserError` where the run in a work directory was started with another config."""
    difference = first_difference(writers.read_json(directory / "config.json"), settings(config))
    if difference:
        raise UserError(
            f"{directory} holds a run with another config: {difference}; name another --workdir."
        )


def planned_before(directory: pathlib.Path) -> int | None:
    """Returns for how many rounds the run in a work directory was planned; None for no run."""
    path = directory / "config.json"
    if not path.exists():
        return None
    content = writers.read_json(path)
    return content.get("planned_rounds") or content["rounds"]


def is_finished(directory: pathlib.Path, config: ml_collections.ConfigDict) -> bool:
    """Whether this very run has been done; raises a `UserError` where another one has."""
    result = directory / "result.json"
    if not result.exists():
        return False
    require_same(directory, config)
    return writers.read_json(result)["rounds"] == config.rounds


def clients_per_chunk(directory: pathlib.Path) -> int | None:
    """Returns how many clients the run in a work directory trains together; None for no run.

    Another choice would change the rounding, and resuming is exact to the last bit.
    """
    path = directory / _ENGINE
    return writers.read_json(path)["clients_per_chunk"] if path.exists() else None


def keep_clients_per_chunk(directory: pathlib.Path, number: int) -> None:
    """Notes it for `clients_per_chunk`."""
    if jax.process_index() == 0:
        writers.write_json(directory / _ENGINE, {"clients_per_chunk": number})


def check(directory: pathlib.Path, config: ml_collections.ConfigDict, *, resume: bool) -> None:
    """Makes sure that a run may have a work directory, and makes it where it does not exist.

    Args:
      directory: that is to hold the run.
      config: of the run.
      resume: the directory may hold an earlier part of the same run.

    Raises:
      UserError: it holds another run, or one that was not asked to be resumed, or cannot be made.
    """
    if (directory / "config.json").exists():
        require_same(directory, config)
        has_checkpoints = any((directory / "checkpoints").glob("[0-9]*"))
        if has_checkpoints and not resume:
            raise UserError(
                f"{directory} holds this run already; add --resume to go on with it, or name "
                "another --workdir."
            )
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_be_written(directory, error) from error


def claim(directory: pathlib.Path, config: ml_collections.ConfigDict, *, resume: bool) -> None:
    """Makes the work directory this run's own; what `check` says first, and `config.json`."""
    check(directory, config, resume=resume)
    if jax.process_index() == 0:
        try:
            writers.write_json(directory / "config.json", settings(config))
        except OSError as error:
            raise _cannot_be_written(directory, error) from error


def _cannot_be_written(directory: pathlib.Path, error: OSError) -> UserError:
    return UserError(f"{directory} cannot be written ({error.strerror}); name another --workdir.")
