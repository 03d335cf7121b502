"""Classification: each example has one label."""

from __future__ import annotations

import jax.numpy as jnp
import optax

from pfljax.core import Task
from pfljax.models.model import Model
from pfljax.tasks.from_network import Statistic, from_network


def classification(
    model: Model, *, num_classes: int, mean: Statistic = 0.0, std: Statistic = 1.0
) -> Task:
    """Returns the task of classifying with `model`.

        L(theta, batch) = mean over real examples of -log softmax(f_theta((x - mean) / std))_y

    Metrics: accuracy (the score), loss.

    Args:
      model: Network with `num_classes` outputs.
      num_classes: Number of classes.
      mean: Subtracted from the stored inputs, as in `from_network`.
      std: Divides the inputs after that.

    Returns:
      The task.
    """

    def losses(logits, batch):
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)

    def metrics(logits, batch):
        loss = losses(logits, batch)
        correct = jnp.argmax(logits, axis=-1) == batch.targets
        return {
            "accuracy": jnp.sum(correct * batch.mask, dtype=loss.dtype),
            "loss": jnp.sum(loss * batch.mask),
        }

    return from_network(
        model, losses, metrics, score="accuracy", num_classes=num_classes, mean=mean, std=std
    )
