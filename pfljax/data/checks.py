"""Checks of the user's arguments, with one-line errors."""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Iterable

from pfljax.errors import UserError


def whole(name: str, value: int, least: int, most: int | None = None) -> int:
    """Returns `value` if it is a whole number of at least `least`.

    Args:
      name: The name of the argument in error messages.
      value: The user's value.
      least: The smallest valid value.
      most: The largest valid value; None for no limit.

    Returns:
      The value as a Python int.

    Raises:
      UserError: The value is not a whole number, or outside the range.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise UserError(f"{name} must be a whole number of at least {least}, not {value!r}.")
    if most is not None and value > most:
        raise UserError(f"{name} must be a whole number of at most {most}, not {value!r}.")
    return int(value)


def fraction(name: str, value: float, *, positive: bool = False) -> float:
    """Returns `value` if it is in [0, 1), or in (0, 1) if it must be `positive`.

    Args:
      name: The name of the argument in error messages.
      value: The user's value.
      positive: Whether 0 is refused too.

    Returns:
      The value as a Python float.

    Raises:
      UserError: The value is outside the interval.
    """
    number = isinstance(value, numbers.Real) and math.isfinite(value)
    if not number or not 0 <= value < 1 or (positive and value == 0):
        interval = "above 0 and below 1" if positive else "at least 0 and below 1"
        raise UserError(f"{name} must be {interval}, not {value!r}.")
    return float(value)


def choice(name: str, value: str, allowed: Iterable[str]) -> str:
    """Returns `value` if it is one of `allowed`; otherwise suggests the nearest one.

    Args:
      name: The name of the argument in error messages.
      value: The user's value.
      allowed: The valid values.

    Returns:
      The value.

    Raises:
      UserError: The value is not valid.
    """
    allowed = list(allowed)
    if value in allowed:
        return value
    near = difflib.get_close_matches(str(value), allowed, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UserError(f"Unknown {name} {value!r}: {hint}Choose one of {', '.join(allowed)}.")


def number(name: str, value: float, least: float, most: float) -> float:
    """Returns `value` if it is a number from `least` to `most`.

    Args:
      name: The name of the argument in error messages.
      value: The user's value.
      least: The smallest valid value.
      most: The largest valid value.

    Returns:
      The value as a Python float.

    Raises:
      UserError: The value is not a number, or outside the range.
    """
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number or not least <= value <= most:
        raise UserError(f"{name} must be from {least:g} to {most:g}, not {value!r}.")
    return float(value)
