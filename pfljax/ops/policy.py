"""A small network that splits the features of each example between two heads."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pfljax.core.types import Params
from pfljax.ops import linear


def init(key: jax.Array, size: int, dtype: jnp.dtype) -> Params:
    """Returns a policy, see `separate`.

    Args:
      key: Typed PRNG key.
      size: The dimension of the features, `d`.
      dtype: The dtype of all arrays.
    """
    layer = linear.init(key, size, 2 * size, dtype)
    return {"linear": layer, "norm": linear.init_norm(2 * size, dtype)}


def separate(
    policy: Params, direction: jax.Array, features: jax.Array, noise: jax.Array | float
) -> tuple[jax.Array, jax.Array]:
    """Splits features into two parts that sum to them.

        s = softmax over the pair of (reshape(relu(norm(linear(z * v / ||v||)))) + noise)

    Args:
      policy: The params of the policy.
      direction: `[d]`, the client's `v`.
      features: `[B, d]`, the features `z`.
      noise: `[B, 2, d]`, or 0.

    Returns:
      `[B, d]` each: the parts for the client's head and for the common head.
    """
    length = jnp.sqrt(jnp.maximum(jnp.sum(direction**2), 1e-12))
    hidden = linear.apply(policy["linear"], features * direction / length)
    hidden = jax.nn.relu(linear.normalize(policy["norm"], hidden, axis=1))
    shares = jax.nn.softmax(hidden.reshape(-1, 2, features.shape[1]) + noise, axis=1)
    return shares[:, 0] * features, shares[:, 1] * features
