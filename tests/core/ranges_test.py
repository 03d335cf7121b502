"""Hyper-parameters outside their range are refused in one sentence, before anything is traced."""

import inspect
import typing
from typing import Annotated

import federation
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfljax import core
from pfljax.algorithms import ALGORITHMS, checked
from pfljax.core import ranges
from pfljax.errors import UserError


@checked
def method(
    task,
    local,
    *,
    lam: Annotated[float, core.at_least(0)] = 0.1,
    steps: Annotated[int, core.at_least(1)] = 1,
    share: Annotated[float, core.between(0, 1)] = 0.5,
    reach: Annotated[float, core.above(0)] = 0.1,
    decay: Annotated[float, core.above(0, 1)] = 0.9,
    detach: bool = True,
):
    """A factory that returns what it got."""
    return {"lam": lam, "steps": steps, "share": share, "detach": detach}


@pytest.mark.parametrize(
    "values, sentence",
    [
        ({"lam": -1}, "method: lam is -1; it must be at least 0."),
        ({"lam": float("nan")}, "method: lam is nan; it must be at least 0."),
        ({"lam": float("inf")}, "method: lam is inf; it must be at least 0."),
        ({"lam": np.float32(-0.5)}, "method: lam is -0.5; it must be at least 0."),
        ({"steps": 0}, "method: steps is 0; it must be at least 1."),
        ({"steps": 1.5}, "method: steps is 1.5; it must be a whole number."),
        ({"share": 1.01}, "method: share is 1.01; it must be between 0 and 1."),
        ({"reach": 0}, "method: reach is 0; it must be positive."),
        ({"decay": 0.0}, "method: decay is 0.0; it must be positive and at most 1."),
    ],
)
def test_a_value_outside_its_range_gives_a_one_line_error(values, sentence):
    with pytest.raises(UserError) as caught:
        method(None, None, **values)
    assert str(caught.value) == sentence


def test_values_inside_pass_and_the_signature_stays():
    given = {"lam": 0, "steps": np.int64(3), "share": 1.0, "detach": False}
    assert method(None, None, **given) == given
    assert list(inspect.signature(method).parameters)[2:4] == ["lam", "steps"]


def test_traced_values_pass_untouched():
    def made(lam):
        return method(None, None, lam=lam)["lam"] * 2

    assert jax.jit(made)(-1.0) == -2
    np.testing.assert_array_equal(jax.vmap(made)(jnp.array([-1.0, 1.0])), [-2, 2])


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_number_of_a_method_has_a_range_that_holds_its_default(name):
    factory = ALGORITHMS[name].factory
    declared = ranges.ranges(factory)
    hints = typing.get_type_hints(factory)
    for parameter in inspect.signature(factory).parameters.values():
        default = parameter.default
        if isinstance(default, int | float) and not isinstance(default, bool):
            kind, allowed = declared.pop(parameter.name)
            assert kind is hints[parameter.name] and isinstance(default, kind)
            assert allowed.holds(default)
    assert not declared


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_method_refuses_a_number_below_the_range(name):
    factory = ALGORITHMS[name].factory
    for parameter, (_, allowed) in ranges.ranges(factory).items():
        below = min(-1, int(allowed.least) - 1)
        said = f"{parameter} is {below}; it must .*\\.$"
        with pytest.raises(UserError, match=f"^{name}: {said}"):
            federation.make(name, **{parameter: below})
        with pytest.raises(UserError, match=f"^hparams.{name}.{said}"):
            core.check_hyperparameters(factory, {parameter: below}, f"hparams.{name}.")
