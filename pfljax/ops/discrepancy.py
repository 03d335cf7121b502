"""The maximum mean discrepancy between the distributions of two samples."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from pfljax.core.client_data import mean_over


def squared_mmd(
    a: jax.Array, b: jax.Array, mask: jax.Array, bandwidths: Sequence[float] = (10, 15, 20, 50)
) -> jax.Array:
    """Returns `[]`, `mean_ij K(a_i, a_j) + K(b_i, b_j) - 2 K(a_i, b_j)` over real examples.

        K(x, y) = sum_s exp(-||x - y||^2 / (2 s))

    Args:
      a: `[B, d]`, the first sample.
      b: `[B, d]`, the second sample.
      mask: `[B]` bool, the rows to use in both.
      bandwidths: The values of `s`.
    """
    pairs = mask[:, None] & mask

    def mean_kernel(x, y):
        squares = jnp.sum(x**2, axis=1)[:, None] + jnp.sum(y**2, axis=1) - 2 * x @ y.T
        kernel = sum(jnp.exp(-squares / (2 * s)) for s in bandwidths)
        return mean_over(kernel, pairs)

    return mean_kernel(a, a) + mean_kernel(b, b) - 2 * mean_kernel(a, b)
