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
