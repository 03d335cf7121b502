"""Cosine similarity of rows."""

import jax
import jax.numpy as jnp
import numpy as np

from pfljax.ops.similarity import cosine


def test_cosine():
    a, b = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    expected = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    np.testing.assert_allclose(cosine(a, b), expected, rtol=1e-5)


def test_a_vector_of_zeros_has_no_slope():
    zero, one = jnp.zeros(3), jnp.ones(3)
    assert cosine(zero, one) == 0
    np.testing.assert_array_equal(jax.grad(cosine, argnums=1)(zero, one), 0)
    assert np.all(np.isfinite(jax.grad(cosine)(zero, one)))
