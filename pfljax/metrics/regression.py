"""Metrics of a client's predicted numbers.

Arguments are `predictions` `[n]` and `targets` `[n]` in one unit, and `mask` `[n]` bool, False for
padding.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pfljax.metrics import masked


def rmse(predictions: jax.Array, targets: jax.Array, mask: jax.Array) -> jax.Array:
    """The root of the mean squared error, in the units of the targets.

    Returns:
      `[]`; NaN without examples.
    """
    return jnp.sqrt(masked.mean((predictions - targets) ** 2, mask))


def r2(predictions: jax.Array, targets: jax.Array, mask: jax.Array) -> jax.Array:
    """The fraction of the variance of the client's targets that is explained.

        1 - sum (f - y)^2 / sum (y - mean y)^2

    Returns:
      `[]`; NaN for a client whose targets are all equal.
    """
    error = masked.mean((predictions - targets) ** 2, mask)
    least, most = (
        jnp.min(jnp.where(mask, targets, jnp.inf)),
        jnp.max(jnp.where(mask, targets, -jnp.inf)),
    )
    variance = masked.mean((targets - masked.mean(targets, mask)) ** 2, mask)
    # Rounding of the mean gives equal targets a variance above zero.
    return jnp.where(least < most, 1 - error / variance, jnp.nan)
