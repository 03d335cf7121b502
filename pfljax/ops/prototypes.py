"""Prototypes, the mean feature of each class: aggregation over clients, and a proximal loss."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pfljax.core import tree
from pfljax.core.client_data import Batch, ClientData, mean_over
from pfljax.core.local_training import LocalTraining, for_each_batch
from pfljax.core.types import Context, Params, Task
from pfljax.core.uploads import Weighted
from pfljax.ops.logits import behind


class Prototypes(NamedTuple):
    """The prototypes of all classes.

    Attributes:
      means: `[C, d]`, zeros for a class without a prototype.
      seen: `[C]` bool, the classes with a prototype.
    """

    means: jax.Array
    seen: jax.Array


class ClassSums(NamedTuple):
    """Sums of features per class.

    Attributes:
      sums: `[C, d]`, the sums of the features of each class.
      counts: `[C]` float, the number of examples of each class.
    """

    sums: jax.Array
    counts: jax.Array

    @property
    def means(self) -> jax.Array:
        """Returns `[C, d]`, zeros for a class without examples."""
        return self.sums / jnp.maximum(self.counts, 1)[:, None]

    def scaled_to(self, size: jax.Array) -> ClassSums:
        """Returns the sums of the same means for `size` `[]` examples in all."""
        factor = size / jnp.maximum(jnp.sum(self.counts), 1)
        return ClassSums(factor * self.sums, factor * self.counts)

    def weighted(self, by_size: bool) -> Weighted:
        """Returns a client's means, weighted for each class by its examples, or by 1.

        Args:
          by_size: Whether the weights are numbers of examples.

        Returns:
          The term of the prototypes, for `ClientOutput.sum`; its weight is `[C]`.
        """
        factor = jnp.where(by_size, 1, 1 / jnp.maximum(self.counts, 1))
        return Weighted(factor[:, None] * self.sums, factor * self.counts)


def none(num_classes: int, num_features: int, dtype: jnp.dtype) -> Prototypes:
    """Returns prototypes without any class."""
    return Prototypes(jnp.zeros((num_classes, num_features), dtype), jnp.zeros(num_classes, bool))


def no_sums(prototypes: Prototypes) -> ClassSums:
    """Returns the sums of no examples, in the shapes and dtype of `prototypes`."""
    return ClassSums(jnp.zeros_like(prototypes.means), jnp.zeros_like(prototypes.means[:, 0]))


def add_batch(total: ClassSums, features: jax.Array, batch: Batch) -> ClassSums:
    """Adds the features `[B, d]` of a batch's real examples to their classes."""
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
    """Returns the sums over a client's examples, in one pass.

    Args:
      task: The task, for features and classes.
      params: The params of the model.
      like: Prototypes of the same shapes and dtype.
      data: The client's examples.
      context: The context, whose key determines the order of the examples.
      local: The settings: batch size, order, partial batches, and number of passes.

    Returns:
      The sums of each class, and `[]`, the sum of the features' squared norms.
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
    """Returns the means of the cohort's weighted total; absent classes keep their prototype."""
    here = total.weight > 0
    means = total.value / jnp.where(here, total.weight, 1)[:, None]
    return Prototypes(jnp.where(here[:, None], means, prototypes.means), prototypes.seen | here)


def scores(similarities: jax.Array, seen: jax.Array, otherwise: jax.Array) -> jax.Array:
    """Returns `[B, C]`, outputs of similarities to prototypes.

    Args:
      similarities: `[B, C]`, the similarity to the prototype of each class.
      seen: `[C]` bool, the classes with a prototype; the others score 1 below the least of these.
      otherwise: `[B, C]`, the outputs if there is no prototype.
    """
    return jnp.where(jnp.any(seen), behind(similarities, seen), otherwise)


def pull(prototypes: Prototypes, features: jax.Array, batch: Batch) -> jax.Array:
    """Returns `[]`, `mean_i [y_i seen] ||z_i - P_{y_i}||^2 / d` over the batch's real examples."""
    gaps = jnp.mean((features - prototypes.means[batch.targets]) ** 2, axis=-1)
    return mean_over(gaps * prototypes.seen[batch.targets], batch.mask)
