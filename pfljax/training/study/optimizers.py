"""From the config of an optimizer to optax."""

from __future__ import annotations

import inspect
import math
from typing import Any

import jax
import ml_collections
import optax

from pfljax.errors import UserError
from pfljax.training.study.config_values import suggest

# Keys of an optimizer's config that are not arguments of the optax function.
_OWN_KEYS = ("name", "decay", "clip_norm")


def known_optimizers() -> list[str]:
    """Returns the names of the optax optimizers with a learning rate."""
    return [
        name
        for name in dir(optax)
        if not name.startswith(("_", "scale_by_"))
        and inspect.isfunction(getattr(optax, name))
        and "learning_rate" in inspect.signature(getattr(optax, name)).parameters
    ]


def make(config: ml_collections.ConfigDict, **changes: Any) -> optax.GradientTransformation:
    """Returns the optimizer of a config that passed `check`; its numbers may be traced.

        u = optimizer(g min(1, clip_norm / ||g||))

    where `||g||` is the L2 norm of all arrays of the gradient; without `clip_norm`, `optimizer(g)`.

    Args:
      config: The keys `name`, `learning_rate` and further arguments; None values are not passed.
      **changes: Arguments that replace those of the config, except None values.
    """
    arguments = {name: value for name, value in config.items() if name not in _OWN_KEYS}
    arguments |= {name: value for name, value in changes.items() if value is not None}
    given = {name: value for name, value in arguments.items() if value is not None}
    optimizer = getattr(optax, config.name)(**given)
    if config.get("clip_norm") is None:
        return optimizer
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)


def require_positive(what: str, value: Any) -> None:
    """Raises a `UserError` if a learning rate or a norm is not a positive finite number."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value < math.inf:
        raise UserError(f"{what} is {value!r}; it must be a positive finite number.")


def check(config: ml_collections.ConfigDict, key: str) -> None:
    """Raises a `UserError` if an optimizer's config is invalid.

    Args:
      config: The config, as for `make`.
      key: The key of the config, for error messages.

    Raises:
      UserError: optax has no such optimizer, it does not take an argument that is set, or it needs
        more than gradients.
    """
    known = known_optimizers()
    if config.name not in known:
        raise UserError(
            f"config.{key}.name is {config.name!r}, which is not an optax optimizer."
            f"{suggest(config.name, known)}"
        )
    taken = inspect.signature(getattr(optax, config.name)).parameters
    for name, value in config.items():
        if name not in _OWN_KEYS and value is not None and name not in taken:
            raise UserError(
                f"config.{key}.{name} is set, but optax.{config.name} takes no {name!r}; it takes "
                f"{', '.join(taken)}."
            )
    require_positive(f"config.{key}.learning_rate", config.learning_rate)
    if config.get("clip_norm") is not None:
        require_positive(f"config.{key}.clip_norm", config.clip_norm)
    for name, value in config.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"config.{key}.{name} is {value}; it must be a finite number.")
    try:
        optimizer = make(config)
        model = {"kernel": jax.ShapeDtypeStruct((2, 2), float)}
        jax.eval_shape(lambda tree: optimizer.update(tree, optimizer.init(tree), tree), model)
    except Exception as error:  # Line searches need the loss itself, with different exceptions.
        raise UserError(
            f"config.{key}: optax.{config.name} cannot be used here ({error}); choose another, "
            "such as sgd or adam."
        ) from error
