"""The mean feature of each class: adding it up over clients, and pulling features to it."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pfljax.core import tree
from pfljax.core.client_data import Batch, ClientData, mean_over
from pfljax.core.local_training import LocalTraining, for_each_batch
from pfljax.core.types import Context, Params, Task
from pfljax.core.uploads import Weighted


class Prototypes(NamedTuple):
    """Attributes:
    means: `[C, d]`, zeros for a class without one.
    seen: `[C]` bool, the classes that have one.
    """

    means: jax.Array
    seen: jax.Array


class ClassSums(NamedTuple):
    """Attributes:
    sums: `[C, d]`, the features of each class, added up.
    counts: `[C]` float, how many they are.
    """

    sums: jax.Array
    counts: jax.Array

    @property
    def means(self) -> jax.Array:
        """`[C, d]`, zeros for a class without examples."""
        return self.sums / jnp.maximum(self.counts, 1)[:, None]

    def weighted(self, by_size: bool) -> Weighted:
        """A client's means, with a weight for each class: its examples, or 1 for all clients alike.

        Args:
          by_size: whether the weights are numbers of examples.

        Returns:
          The term of the prototypes, for `ClientOutput.sum`; its weight is `[C]`.
        """
        share = jnp.where(by_size, 1, 1 / jnp.maximum(self.counts, 1))
        return Weighted(share[:, None] * self.sums, share * self.counts)


def none(num_classes: int, num_features: int, dtype: jnp.dtype) -> Prototypes:
    """Returns prototypes of no class."""
    return Prototypes(jnp.zeros((num_classes, num_features), dtype), jnp.zeros(num_classes, bool))


def no_sums(prototypes: Prototypes) -> ClassSums:
    """Returns the sums of no example, in the shapes and dtype of `prototypes`."""
    return ClassSums(jnp.zeros_like(prototypes.means), jnp.zeros_like(prototypes.means[:, 0]))


def add_batch(total: ClassSums, features: jax.Array, batch: Batch) -> ClassSums:
    """Adds a batch's real examples, with `features` `[B, d]`, to their classes."""
    classes = total.counts.shape[0]
    member = jax.nn.one_hot(batch.targets, classes, dtype=features.dtype) * batch.mask[:, None]
    return ClassSums(total.sums + member.T @ features, total.counts + jnp.sum(member, axis=0))


def of_client(
    task: Task,
    params: Params,
    like: Prototypes,
    data: ClientData,
    context: Context,
    local: LocalTraining,
) -> tuple[ClassSums, jax.Array]:
    """Adds up what a client's examples give, in one pass.

    Args:
      task: features and classes.
      params: nested dict of arrays.
      like: prototypes of the shapes and dtype wanted.
      data: the client's examples.
      context: its key decides the order of the examples.
      local: batch size, order, last batch, and how many passes.

    Returns:
      The sums of each class, and `[]`, the features' squared norms added up.
    """

    def step(carry, batch, key):
        total, squares = carry
        z = task.features(params, batch.inputs)
        squares = squares + tree.squared_norm(z * batch.mask[:, None])
        return add_batch(total, z, batch), squares

    nothing = no_sums(like)
    squares = jnp.zeros((), nothing.sums.dtype)
    return for_each_batch(step, (nothing, squares), data, context, local)


def renew(prototypes: Prototypes, total: Weighted) -> Prototypes:
    """Returns the means of the cohort's weighted total; a class that it lacks keeps its own."""
    here = total.weight > 0
    means = total.value / jnp.where(here, total.weight, 1)[:, None]
    return Prototypes(jnp.where(here[:, None], means, prototypes.means), prototypes.seen | here)


def pull(prototypes: Prototypes, features: jax.Array, batch: Batch) -> jax.Array:
    """Returns `[]`, `mean_i [y_i seen] ||z_i - P_{y_i}||^2 / d` over the batch's real examples."""
    gaps = jnp.mean((features - prototypes.means[batch.targets]) ** 2, axis=-1)
    return mean_over(gaps * prototypes.seen[batch.targets], batch.mask)
