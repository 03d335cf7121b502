"""The configs of the runs of a comparison."""

from __future__ import annotations

import copy

import ml_collections

from pfljax.errors import UserError
from pfljax.training.study.config_values import at, flat, require_known

# The files with params of a model, whose names may have the seed.
_FILES = ("init_from", "adapter.base", "adapter.start")
# The same for all methods of a comparison.
_OF_ALL_METHODS = ("algorithm", "algorithms", "seed", "seeds", "data", "per_method", "scenarios")


def _changed(config: ml_collections.ConfigDict, keys, where: str) -> ml_collections.ConfigDict:
    """Returns a copy of a config with some of its keys changed.

    Raises:
      UserError: A key does not exist, or its value has another type; the sentence says `where`.
    """
    known = flat(config)
    found = copy.deepcopy(config)
    for key, value in flat(keys).items():
        require_known(f"key in {where}", key, known)
        try:
            found.update_from_flattened_dict({key: value})
        except TypeError as error:
            raise UserError(
                f"{where}.{key} is {value!r}; it must be of the type of config.{key}."
            ) from error
    return found


def with_own_keys(config: ml_collections.ConfigDict, method: str) -> ml_collections.ConfigDict:
    """Returns a copy of a config with the keys that `config.per_method` sets for a method."""
    where, keys = f"config.per_method.{method}", config.per_method[method]
    for key in flat(keys):
        if key.split(".")[0] in _OF_ALL_METHODS:
            raise UserError(f"{where} has {key!r}, which is the same for all methods.")
    return _changed(config, keys, where)


def of_run(config: ml_collections.ConfigDict, method: str, seed: int) -> ml_collections.ConfigDict:
    """Returns the config of one run of a comparison."""
    own = with_own_keys(config, method)
    with own.unlocked():
        own.algorithm, own.seed = method, seed
        if own.seeds_vary == "everything":
            own.data.seed += seed
    return with_files_of_seed(own)


def files_of(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    """Returns the files with params of a model that a config names, '' for none."""
    return tuple(at(config, key) for key in _FILES)


def with_files_of_seed(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Returns a copy of a config with the seed in place of `{seed}` in the names of its files.

    Example:
      >>> adapter = {"base": "bases/{seed}.safetensors", "start": ""}
      >>> config = ml_collections.ConfigDict({"seed": 3, "init_from": "", "adapter": adapter})
      >>> with_files_of_seed(config).adapter.base
      'bases/3.safetensors'
    """
    found = copy.deepcopy(config)
    for key, path in zip(_FILES, files_of(config), strict=True):
        if isinstance(path, str):  # the values are checked where they are used
            found.update_from_flattened_dict({key: path.replace("{seed}", str(config.seed))})
    return found


def scenarios(config: ml_collections.ConfigDict) -> dict[str, ml_collections.ConfigDict]:
    """Returns the config of each scenario by name; without scenarios, `{'': config}`.

    Raises:
      UserError: A scenario has an unusable name, or a key that it cannot have.
    """
    found = {}
    for name, keys in config.scenarios.items():
        where = f"config.scenarios.{name}"
        if not name.replace("_", "").replace("-", "").isalnum():
            raise UserError(f"{where} names a directory; use letters, digits, '_' and '-'.")
        if not isinstance(keys, ml_collections.ConfigDict):
            raise UserError(f"{where} is {keys!r}; it must have keys.")
        if "algorithms" in keys or "scenarios" in keys:
            raise UserError(f"{where} has algorithms or scenarios, which all scenarios share.")
        found[name] = _changed(config, keys, where)
        with found[name].unlocked():
            found[name].scenarios = {}
    return found or {"": config}


def planned_rounds(config: ml_collections.ConfigDict) -> int:
    """Returns the length of schedules and annealing."""
    return config.planned_rounds or config.rounds
