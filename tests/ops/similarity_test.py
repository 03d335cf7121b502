"""Norms, directions and cosines of rows, and their gradients at zero."""

import jax
import jax.numpy as jnp
import numpy as np

from pfljax.ops import similarity

ROWS = np.array([[3.0, 4.0], [0.0, 0.0], [-1.0, 1.0]], np.float32)


def test_cosine():
    a, b = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    lengths = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    expected = (a * b).sum(axis=1) / lengths[0] / lengths[1]
    np.testing.assert_allclose(similarity.cosine(a, b), expected, rtol=1e-5)
    pairs = a @ b.T / np.outer(*lengths)
    np.testing.assert_allclose(similarity.cosines(a, b), pairs, rtol=1e-5)


def test_lengths_and_directions():
    np.testing.assert_allclose(similarity.length(ROWS, axis=1), [5, 0, np.sqrt(2)], rtol=1e-6)
    np.testing.assert_allclose(similarity.length(ROWS), np.sqrt(27), rtol=1e-6)
    np.testing.assert_allclose(similarity.unit(ROWS)[:2], [[0.6, 0.8], [0, 0]], rtol=1e-6)


def test_a_vector_of_zeros_has_no_slope():
    zero, one = jnp.zeros(3), jnp.ones(3)
    assert similarity.cosine(zero, one) == 0
    for argument in (0, 1):
        slope = jax.grad(similarity.cosine, argnums=argument)(zero, one)
        np.testing.assert_array_equal(slope, 0)
    for function in (similarity.length, similarity.unit):
        slope = jax.grad(lambda x, function=function: jnp.sum(function(x)))(zero)
        np.testing.assert_array_equal(slope, 0)
    slope = jax.grad(similarity.length)(jnp.array([3.0, 4.0]))
    np.testing.assert_allclose(slope, [0.6, 0.8], rtol=1e-6)
