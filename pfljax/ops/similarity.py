"""Norms, directions and cosine similarity, with the gradient zero where a vector is zero."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def length(x: jax.Array, axis: int | None = None, keepdims: bool = False) -> jax.Array:
    """Returns `||x||` along an axis, or of all entries."""
    squares = jnp.sum(x**2, axis=axis, keepdims=keepdims)
    positive = squares > 0
    # The root is taken of a positive number only: at zero its slope is infinite.
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1)), 0)


def unit(x: jax.Array) -> jax.Array:
    """Returns `x / ||x||` along the last axis; zero for zero."""
    norm = length(x, axis=-1, keepdims=True)
    return jnp.where(norm > 0, x / jnp.where(norm > 0, norm, 1), 0)


def cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns `[...]`, `<a, b> / (||a|| ||b||)` over the last axis; 0 where a vector is zero.

    Args:
      a: `[..., d]`.
      b: `[..., d]`.
    """
    return jnp.sum(unit(a) * unit(b), axis=-1)


def cosines(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns `[n, m]`, the cosines between rows `[n, d]` and rows `[m, d]`; 0 for a zero row."""
    return unit(a) @ unit(b).T
