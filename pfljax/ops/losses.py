"""Losses of outputs that a method computes itself, over the real examples of a batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
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


def derivatives(task: Task, outputs: jax.Array, batch: Batch) -> jax.Array:
    """Returns `[B, K, 2]`, the first and second derivative of each example's loss in each output.

    Second derivatives are those of one output with itself, and zero where they are negative.

    Args:
      task: The task, for its `output_losses`.
      outputs: `[B, K]`.
      batch: The examples; the derivatives of padding are not zero.
    """

    def slope(outputs):
        return jax.grad(lambda rows: jnp.sum(task.output_losses(rows, batch)))(outputs)

    def curvature(direction):
        rows = jnp.broadcast_to(direction, outputs.shape)
        return jnp.sum(jax.jvp(slope, (outputs,), (rows,))[1] * direction, axis=1)

    second = jax.vmap(curvature, out_axes=1)(jnp.eye(outputs.shape[1], dtype=outputs.dtype))
    return jnp.stack([slope(outputs), jnp.maximum(second, 0)], axis=-1)
