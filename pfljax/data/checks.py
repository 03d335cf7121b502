"""What is asked of a user's arguments, and the sentence that refuses them."""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Iterable

from pfljax.errors import UserError


def whole(name: str, value: int, least: int, most: int | None = None) -> int:
    """Returns `value` when it is a whole number of at least `least`.

    Args:
      name: how the user calls the argument.
      value: what the user gave.
      least: the smallest value that makes sense.
      most: the largest; None where there is none.

    Returns:
      The value as a Python int.

    Raises:
      UserError: it is not a whole number, too small or too large.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise UserError(f"{name} must be a whole number of at least {least}, not {value!r}.")
    if most is not None and value > most:
        raise UserError(f"{name} must be a whole number of at most {most}, not {value!r}.")
    return int(value)


def fraction(name: str, value: float, *, positive: bool = False) -> float:
    """Returns `value` when it lies in [0, 1), or in (0, 1) if it must be `positive`.

    Args:
      name: how the user calls the argument.
      value: what the user gave.
      positive: whether 0 is refused too.

    Returns:
      The value as a Python float.

    Raises:
      UserError: it lies outside.
    """
    number = isinstance(value, numbers.Real) and math.isfinite(value)
    if not number or not 0 <= value < 1 or (positive and value == 0):
        interval = "above 0 and below 1" if positive else "at least 0 and below 1"
        raise UserError(f"{name} must be {interval}, not {value!r}.")
    return float(value)


def choice(name: str, value: str, allowed: Iterable[str]) -> str:
    """Returns `value` when it is one of `allowed`, else suggests the nearest.

    Args:
      name: how the user calls the argument.
      value: what the user gave.
      allowed: the values that exist.

    Returns:
      The value.

    Raises:
      UserError: there is no such value.
    """
    allowed = list(allowed)
    if value in allowed:
        return value
    near = difflib.get_close_matches(str(value), allowed, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UserError(f"Unknown {name} {value!r}: {hint}Choose one of {', '.join(allowed)}.")


def number(name: str, value: float, least: float, most: float) -> float:
    """Returns `value` when it is a number from `least` to `most`.

    Args:
      name: how the user calls the argument.
      value: what the user gave.
      least: the smallest value that makes sense.
      most: the largest.

    Returns:
      The value as a Python float.

    Raises:
      UserError: it is no number, or lies outside.
    """
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number or not least <= value <= most:
        raise UserError(f"{name} must be from {least:g} to {most:g}, not {value!r}.")
    return float(value)
