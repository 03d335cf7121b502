"""The examples of a client as a model represents them: its memory of labels or numbers."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pfljax.core import tree
from pfljax.core.client_data import ClientData
from pfljax.core.local_training import LocalTraining
from pfljax.core.types import Context, Params, Task
from pfljax.ops import per_example


class Datastore(NamedTuple):
    """The training examples of a client, as a model represents them.

    Attributes:
      features: `[n, d]`, the features; zeros for padding.
      targets: `[n]`, the labels, or the numbers to predict.
      mask: `[n]` bool, True for a real example.
    """

    features: jax.Array
    targets: jax.Array
    mask: jax.Array


def store(
    task: Task, params: Params, data: ClientData, context: Context, local: LocalTraining
) -> Datastore:
    """Returns the datastore of a client.

    Args:
      task: The task, for its features.
      params: The model.
      data: The client's training examples.
      context: The context; its key has no effect.
      local: The settings, for the batch size.
    """
    dtype = tree.dtype(params)

    def features(batch):
        return task.features(params, batch.inputs).astype(dtype) * batch.mask[:, None]

    found = per_example.collect(features, data, context, local)
    rows = data.take(jnp.arange(len(found), dtype=jnp.int32))
    return Datastore(found, rows.targets, rows.mask)
