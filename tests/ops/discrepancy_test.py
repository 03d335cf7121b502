"""The maximum mean discrepancy against its definition."""

import jax
import jax.numpy as jnp
import numpy as np

from pfljax.ops import discrepancy


def test_squared_mmd_is_its_definition_over_real_rows():
    a, b = np.random.default_rng(0).normal(size=(2, 4, 3))
    rows = [0, 1, 3]

    def mean_kernel(x, y):
        squares = ((x[:, None] - y) ** 2).sum(axis=-1)
        return np.mean(np.exp(-squares / 2) + np.exp(-squares / 8))

    expected = (
        mean_kernel(a[rows], a[rows])
        + mean_kernel(b[rows], b[rows])
        - 2 * mean_kernel(a[rows], b[rows])
    )
    mask = jnp.array([True, True, False, True])
    found = discrepancy.squared_mmd(jnp.array(a), jnp.array(b), mask, bandwidths=(1, 4))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_squared_mmd_of_equal_samples_is_at_rest():
    a = jnp.array(np.random.default_rng(1).normal(size=(4, 3)))
    value, slope = jax.value_and_grad(discrepancy.squared_mmd)(a, a, jnp.ones(4, bool))
    np.testing.assert_allclose(value, 0, atol=1e-6)
    np.testing.assert_allclose(slope, 0, atol=1e-6)
    assert discrepancy.squared_mmd(a, 2 * a, jnp.zeros(4, bool)) == 0
