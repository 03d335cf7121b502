"""Norms and cosines, and their gradients at zero."""

import jax
import jax.numpy as jnp
import numpy as np

from pfljax.ops import norms

ROWS = np.array([[3.0, 4.0], [0.0, 0.0], [-1.0, 1.0]], np.float32)


def test_lengths_and_cosines():
    np.testing.assert_allclose(norms.length(ROWS, axis=1), [5, 0, np.sqrt(2)], rtol=1e-6)
    np.testing.assert_allclose(norms.length(ROWS), np.sqrt(27), rtol=1e-6)
    np.testing.assert_allclose(norms.unit(ROWS)[:2], [[0.6, 0.8], [0, 0]], rtol=1e-6)
    expected = np.array([[1, 0, 0.1 * np.sqrt(2)], [0, 0, 0]])
    np.testing.assert_allclose(norms.cosines(ROWS[:2], ROWS), expected, rtol=1e-5)


def test_gradients_at_zero_are_zero():
    zero = jnp.zeros((2, 3))
    for function in (norms.length, norms.unit, lambda x: norms.cosines(x, jnp.ones((1, 3)))):
        slope = jax.grad(lambda x, function=function: jnp.sum(function(x)))(zero)
        np.testing.assert_array_equal(slope, 0)
    slope = jax.grad(norms.length)(jnp.array([3.0, 4.0]))
    np.testing.assert_allclose(slope, [0.6, 0.8], rtol=1e-6)
