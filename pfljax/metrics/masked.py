"""Means over real examples, whatever the padding contains."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns `[]`, the mean of the values `[n]` where the mask `[n]` is True; NaN without any."""
    return jnp.sum(jnp.where(mask, values, 0)) / jnp.sum(mask)
