"""Losses of outputs that a method computes itself, over the real examples of a batch."""

from __future__ import annotations

import jax
import optax

from pfljax.core.client_data import Batch, mean_over


def cross_entropy(outputs: jax.Array, batch: Batch) -> jax.Array:
    """Returns `[]`, the mean cross-entropy of logits `[B, C]` with the batch's labels."""
    losses = optax.softmax_cross_entropy_with_integer_labels(outputs, batch.targets)
    return mean_over(losses, batch.mask)
