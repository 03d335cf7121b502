"""Median and trimmed mean of each coordinate: a few clients cannot move them far.

The server sees each client's message, so that secure aggregation is impossible.

References:
  Yin, Chen, Ramchandran, Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal
  Statistical Rates", 2018, https://arxiv.org/abs/1803.01498.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp

from pfljax import core
from pfljax.aggregation.messages import Message
from pfljax.aggregation.types import Aggregator, Kind
from pfljax.core import PyTree


def _trimmed(
    messages: Message, present: jax.Array, cut: Callable[[jax.Array], jax.Array]
) -> tuple[PyTree, ...]:
    """Returns the mean of each coordinate's values but for the smallest and the largest ones.

    Args:
      messages: of the cohort, `[cohort, ...]`.
      present: `[cohort]` bool.
      cut: number of values, `[...]` int32, to how many to leave out on each side.

    Returns:
      The values of a message; zeros where no client has any weight.
    """

    def of_leaf(leaf, counted):
        counted = counted.reshape(counted.shape + (1,) * (leaf.ndim - counted.ndim))
        ordered = jnp.sort(jnp.where(counted, leaf, jnp.inf), axis=0)
        count = jnp.sum(counted, axis=0, dtype=jnp.int32)
        rank = jnp.arange(leaf.shape[0]).reshape(-1, *(1,) * (leaf.ndim - 1))
        inside = (rank >= cut(count)) & (rank < count - cut(count))
        left = jnp.maximum(count - 2 * cut(count), 1).astype(leaf.dtype)
        return jnp.sum(jnp.where(inside, ordered, 0), axis=0) / left

    def of_part(value, weight):
        counted = present
        if weight is not None:
            counted = present.reshape(-1, *(1,) * (weight.ndim - 1)) & (weight > 0)
        return jax.tree.map(lambda leaf: of_leaf(leaf, counted), value)

    return tuple(of_part(*part) for part in zip(*messages, strict=True))


def _half(count: jax.Array) -> jax.Array:
    """Returns how many of `count` values to leave out on each side for their median."""
    return jnp.maximum(count - 1, 0) // 2


@core.checked
def median() -> Aggregator:
    """Takes the median of each coordinate over the clients in place of the mean.

    Returns:
      The aggregator; it has no state.

    Notes:
      Clients count equally, whatever their weights, except those with weight 0. Of an even number
      of values the median is the mean of the two in the middle. A part without weight becomes the
      median times the number of clients.
    """

    def combine(messages, present, server, context):
        return _trimmed(messages, present, _half), server

    return Aggregator("median", Kind.ROBUST, combine=combine)


@core.checked
def trimmed_mean(*, fraction: Annotated[float, core.between(0, 0.5)] = 0.1) -> Aggregator:
    """Takes the mean of each coordinate without its smallest and its largest values.

        of n values the floor(fraction n) smallest and as many of the largest are left out

    Args:
      fraction: share of the clients left out on each side, 0 (uniform mean) to 0.5 (median).

    Returns:
      The aggregator; it has no state.

    Notes:
      As for `median`. At least one value always counts, or two of an even number.
    """

    def cut(count):
        return jnp.minimum(jnp.floor(fraction * count).astype(jnp.int32), _half(count))

    def combine(messages, present, server, context):
        return _trimmed(messages, present, cut), server

    return Aggregator("trimmed_mean", Kind.ROBUST, combine=combine)
