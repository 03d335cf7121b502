"""Valid ranges of hyper-parameters, declared in the signature of a method.

    @core.checked
    def ditto(task, local, *, lam: Annotated[float, core.at_least(0)] = 0.1): ...

The factory then refuses `lam=-1` before anything is traced, and so does the check of a config.
"""

from __future__ import annotations

import functools
import math
import numbers
import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pfljax.errors import UserError


class Range(NamedTuple):
    """The valid values of a hyper-parameter.

    Attributes:
      least: The smallest value.
      most: The largest value.
      without_least: Whether `least` itself is invalid.
    """

    least: float
    most: float = math.inf
    without_least: bool = False

    def holds(self, value: float) -> bool:
        """Whether a number is in the range; NaN and infinity are in none."""
        if value == self.least:
            return not self.without_least
        return self.least < value <= self.most and math.isfinite(value)

    def rule(self) -> str:
        """Returns the condition on a value, as the end of a sentence."""
        if self.without_least:
            above = "positive" if self.least == 0 else f"above {self.least}"
            return f"be {above}" + (f" and at most {self.most}" if self.most < math.inf else "")
        if self.most < math.inf:
            return f"be between {self.least} and {self.most}"
        return f"be at least {self.least}"


def at_least(least: float) -> Range:
    """Returns the range from `least` on."""
    return Range(least)


def above(least: float, most: float = math.inf) -> Range:
    """Returns the range from `least`, excluded, to `most`."""
    return Range(least, most, without_least=True)


def between(least: float, most: float) -> Range:
    """Returns the range from `least` to `most`, both included."""
    return Range(least, most)


class Network(NamedTuple):
    """Marks a hyper-parameter that is a task with a separate network.

    A config sets the network's model and its arguments, like `config.model` for the clients:

        mentee: Annotated[core.Task | None, core.NETWORK] = None
    """


NETWORK = Network()


def networks(factory: Callable) -> tuple[str, ...]:
    """Returns the names of the hyper-parameters that the signature marks with `NETWORK`."""
    hints = typing.get_type_hints(factory, include_extras=True)
    return tuple(name for name, hint in hints.items() if NETWORK in typing.get_args(hint)[1:])


def ranges(factory: Callable) -> dict[str, tuple[type, Range]]:
    """Returns type and range of each hyper-parameter that declares a range in the signature."""
    hints = typing.get_type_hints(factory, include_extras=True)
    declared = {name: typing.get_args(hint) for name, hint in hints.items()}
    return {
        name: (args[0], args[1])
        for name, args in declared.items()
        if len(args) == 2 and isinstance(args[1], Range)
    }


def check_hyperparameters(factory: Callable, values: Mapping[str, Any], prefix: str = "") -> None:
    """Raises a `UserError` for the first hyper-parameter outside its range.

    Values that are not plain numbers pass, as they are unknown under `jit`.

    Args:
      factory: The factory of a method, whose signature declares the ranges.
      values: Hyper-parameters by name; undeclared ones pass.
      prefix: The prefix of names in messages, such as 'config.hparams.ditto.'.

    Raises:
      UserError: A value is outside its range, not a number, or not an integer where required.

    Example:
      >>> from pfljax.algorithms import ALGORITHMS
      >>> check_hyperparameters(ALGORITHMS['ditto'].factory, {'lam': -1}, 'config.hparams.ditto.')
      Traceback (most recent call last):
        ...
      pfljax.errors.UserError: config.hparams.ditto.lam is -1; it must be at least 0.
    """
    for name, (kind, allowed) in ranges(factory).items():
        value = values.get(name)
        if not isinstance(value, numbers.Real):
            continue
        if kind is int and not isinstance(value, numbers.Integral):
            raise UserError(f"{prefix}{name} is {value}; it must be a whole number.")
        if not allowed.holds(value):
            raise UserError(f"{prefix}{name} is {value}; it must {allowed.rule()}.")


def checked(factory: Callable) -> Callable:
    """Returns a factory that checks the ranges of its hyper-parameters first.

    Args:
      factory: A function with keyword-only hyper-parameters, whose ranges its signature declares.

    Raises:
      UserError: On a call: a value is not in its range, see `check_hyperparameters`.
    """

    @functools.wraps(factory)
    def checking(*args, **hyperparameters):
        check_hyperparameters(factory, hyperparameters, f"{factory.__name__}: ")
        return factory(*args, **hyperparameters)

    return checking
