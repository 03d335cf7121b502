"""From the config of a learning rate schedule to optax."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from pfljax.errors import UserError
from pfljax.training.study import config as config_lib
from pfljax.training.study import config_runs, config_values

PERIODS = ("round", "step")
CONSTANT = "constant"

# Keys of the config that are not arguments of the optax function; `boundaries` and `scales` are
# one argument of it, a dict.
_OWN_KEYS = ("name", "per")
_PIECES = "boundaries_and_scales"
# Arguments that are, per round, the planned number of rounds if they are not set.
_LENGTHS = ("decay_steps", "transition_steps")
# Number of positions at which a schedule is checked.
_CHECKED = 1000

Schedule = Callable[[jax.Array], jax.Array]


def known_schedules() -> list[str]:
    """Returns the names of the optax schedules whose arguments a config can express."""
    expressible = {*config_lib.schedule_config(), _PIECES}
    return [
        name
        for name in dir(optax.schedules)
        if inspect.isfunction(getattr(optax.schedules, name))
        and _parameters(name)
        and expressible.issuperset(_parameters(name))
    ]


def _parameters(name: str) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(getattr(optax.schedules, name)).parameters)


def uses_planned_rounds(config: ml_collections.ConfigDict) -> bool:
    """Whether a run's schedule depends on its planned number of rounds."""
    settings = config.client_schedule
    if settings.name == CONSTANT or settings.per != "round":
        return False
    return any(name in _parameters(settings.name) and settings[name] is None for name in _LENGTHS)


def make(config: ml_collections.ConfigDict) -> dict[str, Schedule | None]:
    """Returns the schedules of a config that passed `check`, as arguments of `LocalTraining`.

    Args:
      config: The config of the run.

    Returns:
      `schedule`, a function of the round, and `step_schedule`, one of the local step; None for
      none.
    """
    settings, decay = config.client_schedule, config.client_optimizer.decay
    if settings.name != CONSTANT:
        made = getattr(optax.schedules, settings.name)(**_arguments(config))
        if settings.per == "step":
            return {"schedule": None, "step_schedule": made}
        return {"schedule": made, "step_schedule": None}
    by_decay = None if decay == 1 else lambda round: jnp.power(decay, round)
    return {"schedule": by_decay, "step_schedule": None}


def _arguments(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Returns the arguments of the optax schedule, with the defaults of a factor."""
    settings, taken = config.client_schedule, _parameters(config.client_schedule.name)
    arguments = {name: settings[name] for name in taken if settings.get(name) is not None}
    if _PIECES in taken:
        arguments[_PIECES] = dict(zip(settings.boundaries, settings.scales, strict=True))
    defaults = {"init_value": 0.0 if "peak_value" in taken else 1.0, "peak_value": 1.0}
    if settings.per == "round":
        defaults |= dict.fromkeys(_LENGTHS, config_runs.planned_rounds(config))
    return {name: value for name, value in defaults.items() if name in taken} | arguments


def check(config: ml_collections.ConfigDict) -> None:
    """Raises a `UserError` if a config's schedule is invalid."""
    settings, prefix = config.client_schedule, "config.client_schedule"
    config_values.require_known("client_schedule.per", settings.per, PERIODS)
    given = {
        name: value
        for name, value in settings.items()
        if name not in _OWN_KEYS and value is not None and value != ()
    }
    if settings.name == CONSTANT:
        if given:
            raise UserError(
                f"{prefix}.{next(iter(given))} is set, but {prefix}.name is 'constant'; name a "
                f"schedule, such as {', '.join(known_schedules()[:3])}."
            )
        return
    config_values.require_known("client_schedule.name", settings.name, known_schedules())
    if config.client_optimizer.decay != 1:
        raise UserError(
            f"config.client_optimizer.decay is {config.client_optimizer.decay} and {prefix}.name "
            f"is {settings.name!r}, but a run has one schedule; remove one of the two keys."
        )
    taken = _parameters(settings.name)
    pieces = ("boundaries", "scales") if _PIECES in taken else ()
    for name, value in given.items():
        if name not in (*taken, *pieces):
            raise UserError(
                f"{prefix}.{name} is set, but optax.{settings.name} takes no {name!r}; it takes "
                f"{', '.join([*taken, *pieces])}."
            )
        if name.endswith("_steps"):
            config_values.require_whole(f"{prefix}.{name}", value, 1)
        elif name == "transition_begin":
            config_values.require_whole(f"{prefix}.{name}", value, 0)
        elif isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{prefix}.{name} is {value}; it must be a finite number.")
    # With a rate of 0 optax would keep the initial value, and say so in a log only.
    if settings.decay_rate is not None and settings.decay_rate <= 0:
        raise UserError(f"{prefix}.decay_rate is {settings.decay_rate}; it must be positive.")
    if pieces:
        _check_pieces(settings)
    for name, parameter in taken.items():
        if parameter.default is parameter.empty and name not in _arguments(config):
            per_step = f", as {prefix}.per is 'step'" if name in _LENGTHS else ""
            raise UserError(f"optax.{settings.name} needs {prefix}.{name}; set it{per_step}.")
    _check_values(config, given)


def _check_pieces(settings: ml_collections.ConfigDict) -> None:
    """Raises a `UserError` if boundaries and scales do not describe steps."""
    boundaries, scales = settings.boundaries, settings.scales
    for boundary in boundaries:
        config_values.require_whole("Each of config.client_schedule.boundaries", boundary, 1)
    ascending = list(boundaries) == sorted(set(boundaries))
    if not boundaries or len(boundaries) != len(scales) or not ascending:
        raise UserError(
            f"config.client_schedule.boundaries is {boundaries} and scales is {scales}; set both "
            "to the same number of values, the boundaries in ascending order, such as (50, 75) "
            "and (0.1, 0.1)."
        )


def _check_values(config: ml_collections.ConfigDict, given: dict[str, Any]) -> None:
    """Raises a `UserError` if a factor is negative or not finite."""
    settings = config.client_schedule
    lengths = [value for name, value in given.items() if type(value) is int]
    last = sum(lengths) + max(settings.boundaries, default=0)
    if settings.per == "round":
        last = config_runs.planned_rounds(config) - 1
    positions = np.unique(np.linspace(0, last, _CHECKED).astype(np.int32))
    try:
        schedule = getattr(optax.schedules, settings.name)(**_arguments(config))
        factors = np.asarray(jax.lax.map(schedule, positions))
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise UserError(
            f"config.client_schedule: optax.{settings.name} refuses its arguments ({error}); "
            "change them."
        ) from error
    bad = np.flatnonzero(~(np.isfinite(factors) & (factors >= 0)))
    if bad.size:
        raise UserError(
            f"config.client_schedule: optax.{settings.name} is {factors[bad[0]]} in {settings.per} "
            f"{positions[bad[0]]}, but a factor of the learning rate must be finite and not "
            "negative; change its arguments."
        )
