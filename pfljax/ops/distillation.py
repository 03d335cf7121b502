"""Losses for distillation between two models on the same examples."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pfljax.core.client_data import mean_over
from pfljax.ops.logits import among


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


def not_true_divergence(
    target: jax.Array, logits: jax.Array, labels: jax.Array, mask: jax.Array
) -> jax.Array:
    """Returns `[]`, as `divergence`, of the probabilities among the classes that are not the label.

    Args:
      target: `[B, C]`, the target logits.
      logits: `[B, C]`, the logits to train.
      labels: `[B]` int32, the class of each example to leave out of both softmaxes.
      mask: `[B]` bool, True for real examples.
    """
    others = labels[:, None] != jnp.arange(logits.shape[1])
    return divergence(among(target, others), among(logits, others), mask)
