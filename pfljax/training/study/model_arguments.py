"""The arguments of models: their declared types, and checks of their values."""

from __future__ import annotations

import inspect
import types
import typing
from typing import Any

from pfljax import models
from pfljax.errors import UserError
from pfljax.training.study import config_values


def types_of(name: str) -> dict[str, Any]:
    """Returns the types of a model's arguments other than input shape and number of outputs.

    Args:
      name: The name of the model; an argument that it does not annotate has the type `Any`.
    """
    factory = models.MODELS[name]
    hints = typing.get_type_hints(factory)
    return {key: hints.get(key, Any) for key in list(inspect.signature(factory).parameters)[2:]}


def converted(key: str, value: Any, kind: Any) -> Any:
    """Returns a value in the type that a model declares, such as a number as a tuple of one.

    Args:
      key: The name of the value in sentences.
      value: The value.
      kind: The declared type.

    Raises:
      UserError: It has another type, or is not positive.

    Example:
      >>> converted("widths", 64, tuple[int, ...])
      (64,)
    """
    given = value
    value = tuple(value) if isinstance(value, list) else value
    if not fits(value, kind) and fits((value,), kind):
        value = (value,)
    if kind is float and fits(value, kind):
        value = float(value)
    if not fits(value, kind):
        shown = kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else kind
        raise UserError(f"{key} is {given!r}; it must be {shown}, with positive numbers.")
    return value


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a declared type; sizes are positive."""
    inner = typing.get_args(kind)
    if kind is Any:
        return True
    if isinstance(kind, types.UnionType):
        return any(fits(value, one) for one in inner)
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, tuple):
            return False
        each = inner[:1] * len(value) if Ellipsis in inner else inner
        return len(each) == len(value) and all(map(fits, value, each))
    if kind is float:
        return type(value) in (int, float) and 0 < value < float("inf")
    return type(value) is kind and (kind is not int or 0 < value <= config_values.MOST)
