"""The configs of the runs of a comparison."""

from __future__ import annotations

import copy

import ml_collections

from pfljax.errors import UserError
from pfljax.training.study.config_values import flat, require_known

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
    return own


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
