"""Averages over a cohort as sums, which a server can compute from totals only."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pfljax.core import tree as tree_lib

PyTree = Any


class Weighted(NamedTuple):
    """A tree multiplied by its weight, and the weight; sums of both yield weighted means.

    Attributes:
      value: `weight * tree`.
      weight: `[]` float, or `[C]` for a tree of per-class means, whose leaves are `[C, ...]`.
    """

    value: PyTree
    weight: jax.Array


def weighted(tree: PyTree, weight: jax.Array | float) -> Weighted:
    """Returns one client's term of a weighted mean, for `ClientOutput.sum`.

    Args:
      tree: Arrays of floats.
      weight: `[]`, the client's weight: its number of examples, or 1 for a uniform mean.
    """
    weight = jnp.asarray(weight, tree_lib.dtype(tree))
    return Weighted(jax.tree.map(lambda leaf: weight.astype(leaf.dtype) * leaf, tree), weight)


def mean(total: Weighted) -> PyTree:
    """Returns `sum_k w_k x_k / sum_k w_k` for scalar weights; zeros if the weights sum to 0."""
    # Without weight the value is zero too, so any divisor gives zero.
    return tree_lib.divide(total.value, jnp.where(total.weight > 0, total.weight, 1))


def shares(counts: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Returns `counts` `[K, ...]` divided by their sum along the first axis; zeros if that is 0."""
    return counts.astype(dtype) / jnp.maximum(jnp.sum(counts, axis=0).astype(dtype), 1)
