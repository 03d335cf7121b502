"""Checks of a whole config, before any data are read."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import ml_collections

from pfljax import core
from pfljax.algorithms import ALGORITHMS
from pfljax.engine import init
from pfljax.errors import UserError
from pfljax.training.study.config import default_config, model_keys
from pfljax.training.study.config_runs import with_own_keys
from pfljax.training.study.config_values import at, require_known, require_whole, suggest

RESIDENCES = ("device", "host")
# Rules for the client batch size, see `autotune.choose`.
CHUNK_RULES = ("default", "auto")
SEEDS_VARY = ("everything", "training")
MEANS = ("weighted", "unweighted")
ROUNDS = ("best", "last")
COMPUTE_DTYPES = ("float32", "bfloat16")

# Renamed keys of earlier versions, whose runs can be resumed.
RENAMED = {"data.least": "data.min_size"}


# Keys that are passed on as arguments, and are checked against the signature of the callee.
def open_keys() -> tuple[str, ...]:
    """Returns the keys below which a config may have others than the default one."""
    per_method = (f"per_method.{method}" for method in ALGORITHMS)
    return *model_keys(), "client_optimizer", "server_optimizer", "scenarios", *per_method


def _require_keys(config, default, is_open: Container[str], prefix: str = "config.") -> None:
    """Raises a `UserError` if a config lacks a key, or has an unknown one."""
    for name, value in default.items():
        if name not in config:
            raise UserError(
                f"{prefix}{name} is missing; start from default_config() of "
                "pfljax.training.study.config."
            )
        if isinstance(value, ml_collections.ConfigDict):
            if not isinstance(config[name], ml_collections.ConfigDict):
                raise UserError(f"{prefix}{name} is {config[name]!r}; it must have keys.")
            if f"{prefix}{name}".removeprefix("config.") not in is_open:
                _require_keys(config[name], value, is_open, f"{prefix}{name}.")
    for name in config:
        if name not in default:
            renamed = RENAMED.get(f"{prefix}{name}".removeprefix("config."))
            hint = f" It is config.{renamed} now." if renamed else suggest(name, default)
            raise UserError(f"Unknown config key {prefix}{name}.{hint}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def check(config: ml_collections.ConfigDict) -> None:
    """Raises a `UserError` for the first invalid value, before any data are read."""
    _require_keys(config, default_config(), open_keys())
    require_known("algorithm", config.algorithm, ALGORITHMS)
    for name in config.algorithms:
        require_known("algorithm", name, ALGORITHMS)
    for key, least in {
        "rounds": 1,
        "planned_rounds": 0,
        "eval_every": 1,
        "checkpoint_every": 0,
        "batch_size": 1,
        "local_epochs": 1,
        "local_steps": 0,
        "engine.devices": 0,
        "engine.rounds_per_call": 1,
        "engine.eval_batch_size": 1,
        "engine.eval_clients": 0,
    }.items():
        require_whole(f"config.{key}", at(config, key), least)
    if 0 < config.planned_rounds < config.rounds:
        raise UserError(
            f"config.planned_rounds is {config.planned_rounds}, less than config.rounds, which is "
            f"{config.rounds}; raise it, or use 0 for the same number."
        )
    require_known("seeds_vary", config.seeds_vary, SEEDS_VARY)
    require_known("selection.mean", config.selection.mean, MEANS)
    require_known("selection.which_round", config.selection.which_round, ROUNDS)
    if config.shrink_batch and not config.drop_remainder:
        raise UserError(
            "config.shrink_batch changes nothing without config.drop_remainder, as a client's last "
            "batch may be partial; set both, or neither."
        )
    for method, keys in config.per_method.items():
        if keys:
            with_own_keys(config, method)
    if config.scenarios:
        raise UserError(
            f"config.scenarios has {', '.join(config.scenarios)}, which only the command compare "
            "runs; set the keys of one of them, and config.scenarios={}."
        )
    require_known("cohort.join", config.cohort.join, init.JOINS)
    for name, row in ALGORITHMS.items():
        core.check_hyperparameters(row.factory, config.hparams[name], f"config.hparams.{name}.")
    require_known("engine.residence", config.engine.residence, RESIDENCES)
    require_known("compute_dtype", config.compute_dtype, COMPUTE_DTYPES)
    chunk = config.engine.clients_per_chunk
    if chunk not in CHUNK_RULES and not (chunk.isdigit() and int(chunk) >= 1):
        raise UserError(
            f"config.engine.clients_per_chunk is {chunk!r}; it must be 'default', 'auto' or a "
            "positive number."
        )
    if not (_is_number(config.cohort.dropout) and 0 <= config.cohort.dropout < 1):
        raise UserError(f"config.cohort.dropout is {config.cohort.dropout}; it must be in [0, 1).")
    for seed in (config.seed, *config.seeds):
        if not isinstance(seed, int) or not 0 <= seed < 2**32:
            raise UserError(f"{seed!r} is not a valid seed; use whole numbers from 0 to 2**32 - 1.")
    for key in ("seeds", "algorithms"):
        twice = [value for value in config[key] if list(config[key]).count(value) > 1]
        if twice:
            raise UserError(
                f"config.{key} contains {twice[0]!r} twice; list each once, in one option."
            )
    if not config.seeds:
        raise UserError("config.seeds is empty; list at least one seed, such as (0,).")
    if not config.algorithms:
        raise UserError("config.algorithms is empty; list at least one method.")
