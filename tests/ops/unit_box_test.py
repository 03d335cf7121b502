"""Newton steps in a box, against minima known in closed form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfljax.ops import unit_box

MATRIX = jnp.array([[2.0, 0.8], [0.8, 1.0]])


@functools.cache
def found():
    def minimum(target, scale):
        def objective(x):
            return 0.5 * scale * (x - target) @ MATRIX @ (x - target)

        return unit_box.minimize(objective, jnp.full(2, 0.5), steps=30)

    return jax.jit(minimum)


@pytest.mark.parametrize(
    "target, expected",
    [
        ((0.3, 0.8), (0.3, 0.8)),
        # On the boundary x = 1 the other one minimizes x_2^2 / 2 - (2.6 - 0.8) x_2 + constant.
        ((1.5, 0.4), (1.0, 0.8)),
        ((-1.0, -1.0), (0.0, 0.0)),
    ],
)
def test_minima_inside_and_on_the_boundary(target, expected):
    np.testing.assert_allclose(found()(jnp.array(target), 1.0), expected, atol=1e-5)


def test_a_constant_leaves_the_start():
    np.testing.assert_array_equal(found()(jnp.zeros(2), 0.0), [0.5, 0.5])


def test_a_step_that_would_increase_the_objective_is_shortened():
    # Far from its minimum at 0.2 this is nearly linear, so that whole Newton steps overshoot.
    def objective(x):
        return jnp.sum(jnp.sqrt(1e-3 + (x - 0.2) ** 2))

    path = [
        unit_box.minimize(objective, jnp.array([0.9]), steps=steps, damping=0.01)
        for steps in (0, 1, 2, 20)
    ]
    values = [float(objective(point)) for point in path]
    assert values == sorted(values, reverse=True)
    np.testing.assert_allclose(path[-1], [0.2], atol=1e-3)
