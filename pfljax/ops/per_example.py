"""Features, logits or other rows of all examples of a client or of the server, in one array."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from pfljax.core.client_data import Batch, ClientData
from pfljax.core.local_training import LocalTraining, for_each_batch
from pfljax.core.types import Context, PyTree


def collect(
    function: Callable[[Batch], PyTree], data: ClientData, context: Context, local: LocalTraining
) -> PyTree:
    """Returns the rows that a function computes for all examples, in stored order.

    Args:
      function: `batch -> tree`, arrays with a row for each example of the batch, `[B, ...]`.
      data: The examples.
      context: The context; its key has no effect.
      local: The settings, for the batch size.

    Returns:
      The same tree, arrays `[capacity, ...]`, where `capacity` is `data.max_size` rounded up to
      whole batches. Rows from `data.size` on are those of padding, or zeros.
    """
    size = local.batch_size
    capacity = -(-data.max_size // size) * size
    rows = jax.eval_shape(function, data.take(jnp.arange(size, dtype=jnp.int32)))
    empty = jax.tree.map(lambda row: jnp.zeros((capacity, *row.shape[1:]), row.dtype), rows)

    def step(carry, batch, key):
        start, collected = carry

        def write(array, rows):
            return jax.lax.dynamic_update_slice_in_dim(array, rows, start, 0)

        return start + size, jax.tree.map(write, collected, function(batch))

    _, collected = for_each_batch(
        step, (jnp.zeros((), jnp.int32), empty), data, context, local.one_pass()
    )
    return collected


def with_targets(data: ClientData, targets: jax.Array) -> ClientData:
    """Returns the same examples with other targets.

    Args:
      data: The examples.
      targets: `[m, ...]` with `m` at least `data.size`, the targets in the order of `data`; further
        rows are not used.
    """
    stored = data.offset + jnp.arange(data.max_size, dtype=jnp.int32)
    if data.order is not None:
        stored = data.offset + data.order
    stored = jnp.where(jnp.arange(data.max_size) < data.size, stored, data.targets.shape[0])
    empty = jnp.zeros((data.targets.shape[0], *targets.shape[1:]), targets.dtype)
    moved = empty.at[stored].set(targets[: data.max_size], mode="drop")
    return dataclasses.replace(data, targets=moved)
