"""Stacked pytrees: `N` trees of one structure as one tree with leaves `[N, ...]`."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pfljax.core import tree as tree_lib
from pfljax.core.client_data import Batch, ClientData
from pfljax.core.local_training import LocalTraining, for_each_batch
from pfljax.core.types import Cohort, Context, Params, PyTree, Task


def repeat(tree: PyTree, count: int) -> PyTree:
    """Returns `tree` stacked `count` times."""
    return jax.tree.map(lambda leaf: jnp.repeat(leaf[None], count, axis=0), tree)


def take(table: PyTree, index: jax.Array | int) -> PyTree:
    """Returns the row at `index` `[]`, or the stacked rows at `index` `[K]`."""
    return jax.tree.map(lambda leaf: leaf[index], table)


def prepend(tree: PyTree, table: PyTree) -> PyTree:
    """Returns the stacked tree with `tree` as an additional first row."""
    return jax.tree.map(lambda one, many: jnp.concatenate([one[None], many]), tree, table)


def mix(weights: jax.Array, table: PyTree) -> PyTree:
    """Returns the sum of the rows weighted by `weights` `[N]`, each leaf in its own dtype.

    With weights `[M, N]` it returns `M` stacked sums.
    """
    return jax.tree.map(lambda leaf: jnp.tensordot(weights.astype(leaf.dtype), leaf, 1), table)


def squared_distances(table: PyTree, tree: PyTree) -> jax.Array:
    """Returns `[N]`, the squared distance of each row to `tree`."""
    return jax.vmap(tree_lib.squared_distance, in_axes=(0, None))(table, tree)


def cosines(table: PyTree) -> jax.Array:
    """Returns `[N, N]`, the cosine similarities of all pairs of rows; zero for a row of zeros."""
    rows = [leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(table)]
    products = sum(row @ row.T for row in rows)
    lengths = jnp.sqrt(jnp.diag(products))
    inverse = jnp.where(lengths > 0, 1 / jnp.where(lengths > 0, lengths, 1), 0)
    return products * inverse[:, None] * inverse


def losses(
    task: Task, models: Params, batch: Batch, key: jax.Array, train: bool = True
) -> jax.Array:
    """Returns `[N, B]`, each model's loss on each example, whatever its mask.

    One model after the other, as a product of stacked matrices is much slower on CPUs than one of
    each matrix, and clients that are vmapped fill a GPU.

    Args:
      task: The task, for its losses.
      models: Stacked params, leaves `[N, ...]`.
      batch: The examples.
      key: Typed PRNG key for random losses.
      train: The mode of batch normalization, see `Task`; False to evaluate models.
    """
    return jax.lax.map(lambda params: task.losses(params, batch, key, train), models)


def mean_losses(
    task: Task,
    models: Params,
    data: ClientData,
    context: Context,
    local: LocalTraining,
    train: bool = False,
) -> jax.Array:
    """Returns `[N]`, each model's mean loss over a client's examples; zeros without any.

    Args:
      task: The task, for its losses.
      models: Stacked params, leaves `[N, ...]`.
      data: The client's examples.
      context: The context, with a key for random losses.
      local: The settings, for the batch size.
      train: The mode of batch normalization, see `Task`; False to evaluate models.
    """

    def step(total, batch, key):
        return total + jnp.sum(losses(task, models, batch, key, train) * batch.mask, axis=1)

    leaves = jax.tree.leaves(models)
    nothing = jnp.zeros(leaves[0].shape[0], tree_lib.dtype(models))
    total = for_each_batch(step, nothing, data, context, local.one_pass())
    return total / jnp.maximum(data.size, 1)


def scatter_indices(cohort: Cohort) -> jax.Array:
    """Returns `[cohort]`, the rows of the cohort in a table of all clients, for `mode="drop"`.

    A padding slot of the cohort gets a row beyond the end, so that it writes nothing.
    """
    return jnp.where(cohort.ids < 0, cohort.num_clients, cohort.ids)


def update_rows(table: PyTree, cohort: Cohort, new: PyTree) -> PyTree:
    """Returns a table `[N, ...]` of all clients with the rows `new` `[cohort, ...]` of a cohort."""
    here = scatter_indices(cohort)
    return jax.tree.map(lambda old, some: old.at[here].set(some, mode="drop"), table, new)
