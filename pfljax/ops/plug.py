"""Attention of examples to the history of ONE client, which yields personal vectors."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pfljax.core.types import Params
from pfljax.ops import linear, similarity


def init(key: jax.Array, size: int, num_classes: int, width: int, dtype: jnp.dtype) -> Params:
    """Returns a plug whose queries are the features, and whose personal vectors are zero.

    Args:
      key: Typed PRNG key.
      size: The dimension of the features, `d`.
      num_classes: `C`.
      width: Width of the hidden layer of the values.
      dtype: The dtype of all arrays.
    """
    return {
        "query": {"kernel": jnp.eye(size, dtype=dtype), "bias": jnp.zeros(size, dtype)},
        "hidden": linear.init(key, size + num_classes, width, dtype),
        "value": {"kernel": jnp.zeros((width, size), dtype), "bias": jnp.zeros(size, dtype)},
    }


def attend(scores: jax.Array, allowed: jax.Array) -> jax.Array:
    """Returns `[B, n]`, the softmax of each row over the allowed columns; zero without any.

    Args:
      scores: `[B, n]`, finite.
      allowed: `[B, n]` or `[1, n]` bool.
    """
    peak = jnp.max(scores, axis=1, keepdims=True, where=allowed, initial=-jnp.inf)
    peak = jax.lax.stop_gradient(jnp.where(jnp.isfinite(peak), peak, 0))
    powers = jnp.where(allowed, jnp.exp(jnp.where(allowed, scores - peak, 0)), 0)
    total = jnp.sum(powers, axis=1, keepdims=True)
    return powers / jnp.where(total > 0, total, 1)


def personal_vectors(
    plug: Params,
    features: jax.Array,
    known: jax.Array,
    labels: jax.Array,
    allowed: jax.Array,
    scale: float | jax.Array,
) -> jax.Array:
    """Returns `[B, d]`, the personal vectors of examples; zero for one without a history.

        P(z) = sum_i a_i (value after gelu after hidden)([h_i, y_i]),   h_i = z_i / ||z_i||
        a = softmax_i(scale <query(z / ||z||), h_i>)

    Args:
      plug: The params of the plug.
      features: `[B, d]`, the features of the examples.
      known: `[n, d]`, the features of the history.
      labels: `[n, C]`, the labels of the history as rows of a one-hot encoding.
      allowed: `[B, n]` or `[1, n]` bool, the examples of the history that each example attends to.
      scale: Factor of the similarities.
    """
    rows = similarity.unit(known)
    scores = scale * linear.apply(plug["query"], similarity.unit(features)) @ rows.T
    hidden = linear.apply(plug["hidden"], jnp.concatenate([rows, labels], axis=1))
    values = linear.apply(plug["value"], jax.nn.gelu(hidden, approximate=False))
    return attend(scores, allowed) @ values
