"""Multi-label classification: each of several labels applies to an example or does not."""

from __future__ import annotations

import jax.numpy as jnp
import optax

from pfljax.core import Task
from pfljax.models.model import Model
from pfljax.tasks.from_network import Statistic, from_network


def multi_label(model: Model, *, mean: Statistic = 0.0, std: Statistic = 1.0) -> Task:
    """Returns the task of predicting for each of several labels whether it applies.

        L(theta, batch) = mean over real examples and labels of the sigmoid cross-entropy

    Targets are `[B, labels]`, each 0 or 1. Metrics: accuracy (the score), the share of labels that
    are predicted correctly; loss.

    Args:
      model: Network with an output for each label.
      mean: Subtracted from the stored inputs, as in `from_network`.
      std: Divides the inputs after that.

    Returns:
      The task.
    """

    def losses(logits, batch):
        targets = batch.targets.astype(logits.dtype)
        return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, targets), axis=-1)

    def metrics(logits, batch):
        correct = jnp.mean((logits > 0) == (batch.targets > 0), axis=-1, dtype=logits.dtype)
        return {
            "accuracy": jnp.sum(correct * batch.mask),
            "loss": jnp.sum(losses(logits, batch) * batch.mask),
        }

    return from_network(model, losses, metrics, score="accuracy", mean=mean, std=std)
