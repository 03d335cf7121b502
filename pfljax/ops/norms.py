"""Euclidean norms whose gradient at zero is zero."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def length(x: jax.Array, axis: int | None = None, keepdims: bool = False) -> jax.Array:
    """Returns `||x||` along an axis, or of all entries; the gradient at zero is zero."""
    squares = jnp.sum(x**2, axis=axis, keepdims=keepdims)
    positive = squares > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1)), 0)


def unit(x: jax.Array) -> jax.Array:
    """Returns `x / ||x||` along the last axis; zero, with the gradient zero, for zero."""
    norm = length(x, axis=-1, keepdims=True)
    return jnp.where(norm > 0, x / jnp.where(norm > 0, norm, 1), 0)


def cosines(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns `[n, m]`, the cosines between rows `[n, d]` and rows `[m, d]`; 0 for a zero row."""
    return unit(a) @ unit(b).T
