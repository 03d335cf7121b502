"""Metrics of the scores of items, of which the first one was chosen."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pfljax.metrics import masked

# The first items of a ranking, among which hits and gains look for the chosen one.
CUTOFF = 10


def num_ahead(scores: jax.Array) -> jax.Array:
    """Returns `[n]`, the number of other items ranked before the chosen one; equal ones count half.

    Args:
      scores: `[n, 1 + K]`, the chosen item first. Scores that are not numbers rank it last.
    """
    margins = scores[:, :1] - scores[:, 1:]
    behind = jnp.sum((margins > 0) + 0.5 * (margins == 0), axis=-1)
    return scores.shape[1] - 1 - behind


def hits(ahead: jax.Array) -> jax.Array:
    """Returns `[n]` bool, whether fewer than 10 items are ranked before the chosen one."""
    return ahead < CUTOFF


def gains(ahead: jax.Array) -> jax.Array:
    """Returns `[n]`, 1 / log2(2 + r) for r < 10 items before the chosen one, otherwise 0: NDCG."""
    return jnp.where(hits(ahead), 1 / jnp.log2(2 + ahead), 0)


def mrr(scores: jax.Array, targets: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean of 1 / rank of the chosen item; equal scores share the mean of their ranks.

    Args:
      scores: `[n, 1 + K]`, the chosen item first.
      targets: Not read.
      mask: `[n]` bool, False for padding.

    Returns:
      `[]`; NaN without examples.
    """
    return masked.mean(1 / (1 + num_ahead(scores)), mask)
