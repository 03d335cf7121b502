"""Cosine similarity, with the gradient zero where a vector is zero."""

from __future__ import annotations

import jax
import jax.numpy as jnp

# The least norm by which a vector is divided.
LEAST_NORM = 1e-8


def cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns `[...]`, `<a, b> / (||a|| ||b||)` over the last axis; 0 where a vector is zero.

    Args:
      a: `[..., d]`.
      b: `[..., d]`.
    """
    return jnp.sum(a * b, axis=-1) / (_norm(a) * _norm(b))


def _norm(x: jax.Array) -> jax.Array:
    squares = jnp.sum(x**2, axis=-1)
    # The root is taken of a positive number only: at zero its slope is infinite.
    return jnp.sqrt(jnp.maximum(squares, LEAST_NORM**2))
