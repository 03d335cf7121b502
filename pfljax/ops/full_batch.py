"""Means over all examples of a client: of the loss, and of its gradient."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pfljax.core import tree as tree_lib
from pfljax.core.client_data import ClientData
from pfljax.core.local_training import LocalTraining, for_each_batch
from pfljax.core.types import Context, Params, Task


def mean_loss(
    task: Task, params: Params, data: ClientData, context: Context, local: LocalTraining
) -> jax.Array:
    """Returns `[]`, a model's mean loss over a client's examples; zero without any.

    Batch normalization uses the running statistics.

    Args:
      task: The task, for its losses.
      params: The params of the model.
      data: The client's examples.
      context: The context, with a key for random losses.
      local: The settings, for the batch size.
    """

    def step(total, batch, key):
        return total + jnp.sum(task.losses(params, batch, key, train=False) * batch.mask)

    nothing = jnp.zeros((), tree_lib.dtype(params))
    total = for_each_batch(step, nothing, data, context, local.one_pass())
    return total / jnp.maximum(data.size, 1)


def value_and_gradient(
    task: Task, params: Params, data: ClientData, context: Context, local: LocalTraining
) -> tuple[jax.Array, Params]:
    """Returns the mean loss `[]` over a client's examples and its gradient; zeros without any.

    Batch normalization is in training mode, on the statistics of each batch. The gradient of
    running statistics is zero.

    Args:
      task: The task, for its loss.
      params: The params of the model.
      data: The client's examples.
      context: The context, with a key for random losses.
      local: The settings, for the batch size.
    """

    def step(totals, batch, key):
        found = jax.value_and_grad(task.loss)(params, batch, key)
        count = jnp.sum(batch.mask).astype(tree_lib.dtype(params))
        return tree_lib.add(totals, tree_lib.scale(count, found))

    nothing = (jnp.zeros((), tree_lib.dtype(params)), tree_lib.zeros_like(params))
    totals = for_each_batch(step, nothing, data, context, local.one_pass())
    return tree_lib.divide(totals, jnp.maximum(data.size, 1))


def gradient(
    task: Task, params: Params, data: ClientData, context: Context, local: LocalTraining
) -> Params:
    """Returns the gradient of `value_and_gradient`, which has its arguments."""
    return value_and_gradient(task, params, data, context, local)[1]
