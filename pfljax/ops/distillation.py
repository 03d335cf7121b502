"""Losses for distillation between two models on the same examples."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pfljax.core.client_data import mean_over


def divergence(target: jax.Array, logits: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns `[]`, the mean of `KL(softmax(target) || softmax(logits))` over real examples.

    Args:
      target: `[B, C]`, the target logits.
      logits: `[B, C]`, the logits to train.
      mask: `[B]` bool, True for real examples.
    """
    target, logits = jax.nn.log_softmax(target), jax.nn.log_softmax(logits)
    return mean_over(jnp.sum(jnp.exp(target) * (target - logits), axis=-1), mask)


def distance(a: jax.Array, b: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns `[]`, the mean of `||a_i - b_i||^2 / d` over real examples, of `[B, d]` each."""
    return mean_over(jnp.mean((a - b) ** 2, axis=-1), mask)
