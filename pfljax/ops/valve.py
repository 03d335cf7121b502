"""A small network that maps features for a condition, such as a sum of class embeddings."""

from __future__ import annotations

import jax

from pfljax.core.types import Params
from pfljax.ops import linear

PARTS = ("gamma", "beta")


def init(key: jax.Array, size: int, dtype: jax.numpy.dtype) -> Params:
    """Returns a valve, see `apply`.

    Args:
      key: Typed PRNG key.
      size: The dimension of the features and of conditions, `d`.
      dtype: The dtype of all arrays.
    """
    return {
        part: {
            "linear": linear.init(part_key, size, size, dtype),
            "norm": linear.init_norm(size, dtype),
        }
        for part, part_key in zip(PARTS, jax.random.split(key), strict=True)
    }


def apply(valve: Params, features: jax.Array, condition: jax.Array) -> jax.Array:
    """Returns `[B, d]`, the features for a condition.

        relu(z (gamma(q) + 1) + beta(q)),   gamma and beta: norm(relu(linear(q)))

    Args:
      valve: The params of the valve.
      features: `[B, d]`, the features `z`.
      condition: `[d]`, the condition `q`.
    """

    def part(name):
        layer = valve[name]
        hidden = jax.nn.relu(linear.apply(layer["linear"], condition[None]))
        return linear.normalize(layer["norm"], hidden, axis=1)

    return jax.nn.relu(features * (part("gamma") + 1) + part("beta"))
