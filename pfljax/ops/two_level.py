"""The models of clients as draws of a normal distribution, each known with noise of its own.

    theta_m ~ N(theta_0, sigma_0^2),   an estimate of theta_m ~ N(theta_m, sigma_m^2)

with a flat prior of `theta_0`. A *precision* is `1 / sigma_m^2`; 0 for a client without an
estimate. Shapes in the docstrings: `N` clients.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pfljax.core import tree
from pfljax.core.types import Params
from pfljax.ops import stacked

# The smallest variance of an estimate, so that precisions are finite.
_LEAST = 1e-12


def weights(precisions: jax.Array, between: jax.Array) -> jax.Array:
    """Returns `[N]`, the precision `1 / (sigma_0^2 + sigma_m^2)` of each estimate about `theta_0`.

    Args:
      precisions: `[N]`, `1 / sigma_m^2`.
      between: `[]`, the variance `sigma_0^2` between clients.
    """
    return precisions / (1 + between * precisions)


def mean(weights: jax.Array, models: Params, otherwise: Params) -> Params:
    """Returns the mean of stacked models with weights `[N]`; `otherwise` if all of them are 0."""
    total = jnp.sum(weights)
    found = stacked.mix(weights / jnp.where(total > 0, total, 1), models)
    return tree.where(total > 0, found, otherwise)


def prior_share(total: jax.Array, precision: jax.Array, between: jax.Array) -> jax.Array:
    """Returns `[]`, the weight that the estimates of the others have in a client's posterior mean.

        v = sigma_0^2 + 1 / sum_{j != m} w_j,   E theta_m = s prior + (1 - s) estimate,
        s = sigma_m^2 / (sigma_m^2 + v)

    Args:
      total: `[]`, the sum of the `weights` of the other clients.
      precision: `[]`, `1 / sigma_m^2` of the client.
      between: `[]`, the variance `sigma_0^2` between clients.

    Returns:
      The weight; 0 if the client has no estimate, or there is none of the others.
    """
    known = (total > 0) & (precision > 0)
    variance = between + 1 / jnp.where(total > 0, total, 1)
    return jnp.where(known, 1 / (1 + variance * precision), 0)


def steps(share: jax.Array, rate: jax.Array | float, most: jax.Array) -> jax.Array:
    """Returns `[]` int32, the steps after which a gradient descent has a share of its start left.

        l = ln(s) / ln(1 - rate), rounded to the nearest number from 1 to `most`

    Args:
      share: `[]`, the share `s`; 0 takes all steps.
      rate: `[]`, the learning rate times the curvature; one step from about 1 on.
      most: `[]` int32, the largest number of steps; 0 if the client can take none.
    """
    kept = jnp.log1p(-jnp.clip(jnp.asarray(rate, share.dtype), 1e-6, 1 - 1e-6))
    wanted = jnp.log(share) / kept  # infinite for a share of 0
    return jnp.clip(jnp.round(wanted), 1, most).astype(jnp.int32)


def variance_between(models: Params, known: jax.Array) -> jax.Array:
    """Returns `[]`, the unbiased variance of models, a mean over weights; 0 with less than two.

    Args:
      models: Stacked params without running statistics, leaves `[N, ...]`.
      known: `[N]` bool, which models count.
    """
    count = jnp.sum(known).astype(tree.dtype(models))

    def squares(leaf):
        rows = leaf.reshape(leaf.shape[0], -1)
        mean = jnp.sum(rows * known[:, None], axis=0) / jnp.maximum(count, 1).astype(leaf.dtype)
        return jnp.sum(jnp.square(rows - mean) * known[:, None])

    total = sum(squares(leaf) for leaf in jax.tree.leaves(models))
    return total / (jnp.maximum(count - 1, 1) * (tree.size(models) / known.shape[0]))


class Iterates(NamedTuple):
    """The models that a local training passes, summed up.

    Attributes:
      count: `[]`, their number.
      mean: Their mean.
      squares: `[]`, the sum of their squared distances to the mean.
    """

    count: jax.Array
    mean: Params
    squares: jax.Array

    def add(self, params: Params) -> Iterates:
        """Returns the sums with one more model, by Welford's recursion."""
        gap = tree.subtract(params, self.mean)
        count = self.count + 1
        squares = self.squares + (1 - 1 / count) * tree.squared_norm(gap)
        return Iterates(count, tree.add_scale(self.mean, 1 / count, gap), squares)

    def precision(self) -> jax.Array:
        """Returns `[]`, one over the unbiased variance, a mean over weights; 0 for one model."""
        variance = self.squares / (jnp.maximum(self.count - 1, 1) * tree.size(self.mean))
        return jnp.where(self.count > 1, 1 / jnp.maximum(variance, _LEAST), 0)


def no_iterates(params: Params) -> Iterates:
    """Returns the sums of no model of the structure of `params`."""
    zero = jnp.zeros((), tree.dtype(params))
    return Iterates(zero, tree.zeros_like(params), zero)
