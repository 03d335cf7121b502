"""Logits of some of the classes."""

from __future__ import annotations

import jax
import jax.numpy as jnp

# Logit of an excluded class: finite, and so small that the class has probability 0.
EXCLUDED = -1e9


def among(logits: jax.Array, included: jax.Array) -> jax.Array:
    """Returns the logits with those of excluded classes so small that a softmax leaves them out.

    Args:
      logits: `[B, C]`.
      included: `[C]` or `[B, C]` bool, the classes to keep.
    """
    return jnp.where(included, logits, EXCLUDED)


def behind(logits: jax.Array, included: jax.Array) -> jax.Array:
    """Returns finite logits in which each excluded class is 1 below the least of the others.

    Args:
      logits: `[B, C]`.
      included: `[C]` bool, the classes that may be predicted; with none, all remain as they are.
    """
    least = jnp.min(jnp.where(included, logits, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(included | ~jnp.any(included), logits, least - 1)
