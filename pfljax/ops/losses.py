"""Losses of outputs that a method computes itself, over the real examples of a batch."""

from __future__ import annotations

import jax
import optax

from pfljax.core.client_data import Batch, mean_over
from pfljax.core.types import Task
from pfljax.errors import UserError


def cross_entropy(outputs: jax.Array, batch: Batch) -> jax.Array:
    """Returns `[]`, the mean cross-entropy of logits `[B, C]` with the batch's labels."""
    losses = optax.softmax_cross_entropy_with_integer_labels(outputs, batch.targets)
    return mean_over(losses, batch.mask)


def of_outputs(task: Task, outputs: jax.Array, batch: Batch) -> jax.Array:
    """Returns `[]`, the task's mean loss of outputs that were computed before.

    Args:
      task: The task.
      outputs: `[B, ...]`, those of `task.predict` for the batch.
      batch: The examples.

    Raises:
      UserError: The task has no `output_losses`.
    """
    if task.output_losses is None:
        raise UserError(
            "The method computes the loss from the outputs of the model; set `Task.output_losses`, "
            "or choose another method."
        )
    return mean_over(task.output_losses(outputs, batch), batch.mask)
