"""Guards a work directory against being overwritten by a different run."""

from __future__ import annotations

import copy
import functools
import json
import os
import pathlib
from typing import Any

import jax
import ml_collections

from pfljax import extensions
from pfljax.algorithms import ALGORITHMS
from pfljax.errors import UserError
from pfljax.training.run import checkpoint, writers
from pfljax.training.study.config import default_config
from pfljax.training.study.config_checks import RENAMED
from pfljax.training.study.config_runs import planned_rounds

# Keys that may differ between a run and its resumption: they do not affect the results.
_FREE_KEYS = (
    *("algorithms", "seeds", "seeds_vary", "engine", "imports", "selection"),
    *("eval_every", "checkpoint_every", "rounds", "planned_rounds"),
)

# The choices of the engine for the run.
_ENGINE = "engine.json"

# The checkpoint storage treats these characters as patterns, and would read other files.
_PATTERNS = "*?[\\"
# Maximum length of a path, and the length reserved for the files of a checkpoint.
_LONGEST_PATH, _LONGEST_FILE = 4096, 256


def settings(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Returns the part of a config that one run depends on, without those of other methods.

    Numbers are converted as in JSON, so that they can be compared with stored ones.
    """
    content = json.loads(config.to_json())
    content["planned_rounds"] = planned_rounds(config)
    del content["per_method"], content["scenarios"]  # a run has its own keys
    for key in ("hparams", "learning_rates"):
        content[key] = {config.algorithm: content[key][config.algorithm]}
    used = ("stages", "metrics", *config.aggregation.stages)
    content["aggregation"] = {key: content["aggregation"][key] for key in used}
    return content


def first_difference(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> str | None:
    """Returns the first key at which two configs differ, with both values; None if equal.

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


def settings_before(directory: pathlib.Path) -> dict[str, Any] | None:
    """Returns the `settings` of the run in a work directory; None for no run.

    The settings in its latest checkpoint, which have a checksum, take precedence over
    `config.json`.

    Raises:
      UserError: `config.json` is damaged, and there is no checkpoint to replace it.
    """
    notes = checkpoint.newest_notes(directory)
    if notes is not None and "settings" in notes:
        return notes["settings"]
    path = directory / "config.json"
    if not path.exists():
        return None
    content = writers.read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} does not contain a config; remove it and run again.")
    return content


def upgraded(old: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings of a run of an earlier version with the keys of this one.

    Keys that were renamed get their new names, and keys that did not exist their defaults.

    Args:
      old: The `settings` of the run; not changed.
    """
    default = default_config()
    if old.get("algorithm") in default.hparams:
        default.algorithm = old["algorithm"]
    new = copy.deepcopy(old)
    for before, after in RENAMED.items():
        (*path, name), (*target, new_name) = before.split("."), after.split(".")
        source = functools.reduce(lambda node, key: node.get(key, {}), path, new)
        if name in source:
            functools.reduce(lambda node, key: node.setdefault(key, {}), target, new)[new_name] = (
                source.pop(name)
            )
    return _with_defaults(new, settings(default))


def _with_defaults(content: dict[str, Any], default: dict[str, Any]) -> dict[str, Any]:
    filled = dict(content)
    for key, value in default.items():
        if key not in filled:
            filled[key] = value
        elif isinstance(value, dict) and isinstance(filled[key], dict):
            filled[key] = _with_defaults(filled[key], value)
    return filled


def config_of(directory: pathlib.Path) -> ml_collections.ConfigDict:
    """Returns the config of the run in a work directory, in the form of this version.

    The files of `config.imports` are imported, so that methods of the user are known.

    Args:
      directory: The work directory.

    Raises:
      UserError: The directory contains no run, or one that this version cannot read.
    """
    before = settings_before(directory)
    if before is None:
        raise UserError(f"{directory} contains no run: it has no config.json.")
    return config_from(before, str(directory))


def config_from(stored: dict[str, Any], where: str) -> ml_collections.ConfigDict:
    """Returns the config with the `settings` of a run, of this version or an earlier one.

    Args:
      stored: The settings.
      where: Where they are from, for error messages.

    Raises:
      UserError: The method is not registered, or a file with it is missing.
    """
    method = stored.get("algorithm")
    for file in stored.get("imports", ()) if method not in ALGORITHMS else ():
        extensions.import_file(file)
    if method not in ALGORITHMS:
        raise UserError(
            f"{where} is of the method {method!r}, which is not registered: register it first, or "
            "import its file."
        )
    config = default_config()
    with config.unlocked(), config.ignore_type():
        _update(config, upgraded(stored))
    return config


def _update(config: ml_collections.ConfigDict, stored: dict[str, Any]) -> None:
    """Sets keys to values from JSON."""
    for key, value in stored.items():
        if isinstance(value, dict) and isinstance(config.get(key), ml_collections.ConfigDict):
            _update(config[key], value)
        else:
            config[key] = tuple(value) if isinstance(value, list) else value


def require_same_settings(
    directory: pathlib.Path, before: dict[str, Any], config: ml_collections.ConfigDict
) -> None:
    """Raises a `UserError` if a run was started with another config.

    Args:
      directory: The work directory of the run.
      before: The `settings` of the run.
      config: The config with which to resume it.
    """
    difference = first_difference(upgraded(before), settings(config))
    if difference:
        raise UserError(
            f"{directory} contains a run with another config: {difference}; choose another "
            "--workdir."
        )


def require_same(directory: pathlib.Path, config: ml_collections.ConfigDict) -> None:
    """Raises a `UserError` if the run in a work directory was started with another config."""
    before = settings_before(directory)
    if before is not None:
        require_same_settings(directory, before, config)


def planned_before(directory: pathlib.Path) -> int | None:
    """Returns the planned number of rounds of the run in a work directory; None for no run."""
    before = settings_before(directory) or {}
    return before.get("planned_rounds") or before.get("rounds")


def is_finished(directory: pathlib.Path, config: ml_collections.ConfigDict) -> bool:
    """Whether this run has finished; raises a `UserError` if the directory contains another one.

    A run with damaged files is not finished: resuming it rewrites them.
    """
    require_usable(directory)
    path = directory / "result.json"
    if not path.exists():
        return False
    require_same(directory, config)
    try:
        result = writers.read_json(path)
        writers.read_rows(directory / "metrics.jsonl")
    except UserError:
        return False
    intact = isinstance(result, dict) and writers.is_intact(result, directory)
    return intact and result.get("rounds") == config.rounds


def clients_per_chunk(directory: pathlib.Path) -> int | None:
    """Returns the client batch size of the run in a work directory; None for no run.

    Another choice would change the rounding, and resumption is exact to the last bit.
    """
    notes = checkpoint.newest_notes(directory)
    if notes is not None and "clients_per_chunk" in notes:
        return notes["clients_per_chunk"]
    path = directory / _ENGINE
    try:
        number = writers.read_json(path)["clients_per_chunk"] if path.exists() else None
    except (UserError, TypeError, KeyError):
        return None  # Without a checkpoint, any choice is possible.
    return number if type(number) is int and number > 0 else None


def keep_clients_per_chunk(directory: pathlib.Path, number: int) -> None:
    """Stores the client batch size for `clients_per_chunk`."""
    if jax.process_index() == 0:
        writers.write_json(directory / _ENGINE, {"clients_per_chunk": number})


def require_usable(directory: pathlib.Path) -> None:
    """Raises a `UserError` if a directory of this name cannot be used as a work directory."""
    shown = f"{str(directory)[:80]}..." if len(str(directory)) > 80 else str(directory)
    try:
        whole = os.path.realpath(directory)
        length = len(whole.encode())
        directory.stat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass  # Creating it reports the error.
    except (OSError, ValueError) as error:  # ValueError: a zero byte, or invalid Unicode
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"{shown!a} cannot be used ({reason}); choose another --workdir."
        ) from error
    patterns = [character for character in _PATTERNS if character in whole]
    if patterns:
        raise UserError(
            f"{whole!r} contains {' '.join(patterns)}, which the checkpoint storage treats as a "
            "pattern; choose another --workdir."
        )
    if length + _LONGEST_FILE > _LONGEST_PATH:
        raise UserError(f"{shown!r} is too long ({length} bytes); choose another --workdir.")


def check(directory: pathlib.Path, config: ml_collections.ConfigDict, *, resume: bool) -> None:
    """Checks that a run may use a work directory, and creates it if missing.

    Args:
      directory: The work directory.
      config: The config of the run.
      resume: Whether the directory may contain an earlier part of the same run.

    Raises:
      UserError: It contains another run, or the same run without `resume`, or cannot be created.
    """
    require_usable(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_be_written(directory, error) from error
    require_same(directory, config)
    if checkpoint.latest_round(directory) is not None and not resume:
        raise UserError(
            f"{directory} already contains this run; add --resume to continue it, or choose "
            "another --workdir."
        )


def claim(directory: pathlib.Path, config: ml_collections.ConfigDict, *, resume: bool) -> None:
    """Assigns the work directory to a run: checks it and writes `config.json`."""
    check(directory, config, resume=resume)
    if jax.process_index() == 0:
        try:
            writers.write_json(directory / "config.json", settings(config))
        except OSError as error:
            raise _cannot_be_written(directory, error) from error


def _cannot_be_written(directory: pathlib.Path, error: OSError) -> UserError:
    return UserError(f"{directory} cannot be written ({error.strerror}); choose another --workdir.")
