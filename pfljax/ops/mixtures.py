"""Mixtures of normal distributions with full covariances, from sums over examples.

Shapes in the docstrings: `n` examples of dimension `d`, `M` components.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pfljax.ops import linear_algebra

# The smallest weight, in examples, from which a component is estimated.
_LEAST = 1e-6


class Components(NamedTuple):
    """The components of a mixture.

    Attributes:
      means: `[M, d]`.
      covariances: `[M, d, d]`.
    """

    means: jax.Array
    covariances: jax.Array

    def log_densities(self, points: jax.Array) -> jax.Array:
        """Returns `[M, n]`, the logarithm of each component's density at points `[n, d]`."""
        factors = jax.vmap(linear_algebra.cholesky)(self.covariances)
        gaps = jnp.swapaxes(points - self.means[:, None], 1, 2)
        normal = jax.vmap(linear_algebra.solve_lower)(factors, gaps)
        diagonals = jnp.diagonal(factors, axis1=1, axis2=2)
        constant = 0.5 * points.shape[1] * math.log(2 * math.pi)
        volumes = jnp.sum(jnp.log(diagonals), axis=1) + constant
        return -0.5 * jnp.sum(normal**2, axis=1) - volumes[:, None]


class Moments(NamedTuple):
    """Weighted sums over examples, about a point of reference `m` for each component.

    Sums of several clients about the same point are added.

    Attributes:
      count: `[M]`, the sum of the weights.
      first: `[M, d]`, the weighted sum of `z - m`.
      second: `[M, d, d]`, the weighted sum of `(z - m) (z - m)^T`.
    """

    count: jax.Array
    first: jax.Array
    second: jax.Array

    def add(self, points: jax.Array, weights: jax.Array, about: jax.Array) -> Moments:
        """Returns the sums with more examples.

        Args:
          points: `[n, d]`, the examples; those with the weight 0 are finite.
          weights: `[M, n]`, the weight of each example in each component.
          about: `[M, d]`, the points of reference, the same for all sums that are added.
        """
        gaps = points - about[:, None]
        return Moments(
            self.count + jnp.sum(weights, axis=1),
            self.first + jnp.einsum("mn,mnd->md", weights, gaps),
            self.second + jnp.einsum("mn,mnd,mne->mde", weights, gaps, gaps),
        )

    def components(
        self, known: Components, ridge: float | jax.Array, added: float | jax.Array
    ) -> Components:
        """Returns the components with these moments, which are about the means of `known`.

            mu = sum g z / (sum g + added)
            Sigma = sum g (z - mu) (z - mu)^T / (sum g + added) + ridge I

        Args:
          known: The components whose means are the points of reference; a component without weight
            stays as it is there.
          ridge: Multiple of the identity in each covariance.
          added: Added to the sums of the weights; 0 gives the estimates of maximum likelihood.
        """
        here = self.count > _LEAST
        total = jnp.where(here, self.count + added, 1)[:, None]
        # The mean is shifted towards zero, not towards the point of reference.
        shift = (self.first - added * known.means) / total
        cross = self.first[:, :, None] * shift[:, None]
        outer = self.count[:, None, None] * shift[:, :, None] * shift[:, None]
        scatter = self.second - cross - cross.transpose(0, 2, 1) + outer
        identity = jnp.eye(shift.shape[1], dtype=shift.dtype)
        found = Components(known.means + shift, scatter / total[..., None] + ridge * identity)
        return keep_where(here, found, known)


def keep_where(here: jax.Array, found: Components, known: Components) -> Components:
    """Returns the components of `found` where `here` `[M]` holds, else those of `known`."""
    return Components(
        jnp.where(here[:, None], found.means, known.means),
        jnp.where(here[:, None, None], found.covariances, known.covariances),
    )


def initial(key: jax.Array, number: int, dimensions: int, dtype: jnp.dtype) -> Components:
    """Returns `M = number` components with standard normal means and the identity as covariance."""
    means = jax.random.normal(key, (number, dimensions), dtype)
    return Components(means, jnp.tile(jnp.eye(dimensions, dtype=dtype), (number, 1, 1)))


def no_moments(components: Components) -> Moments:
    """Returns the sums of no example, of the shapes of `components`."""
    means, covariances = components
    return Moments(jnp.zeros_like(means[:, 0]), jnp.zeros_like(means), jnp.zeros_like(covariances))


def projection(key: jax.Array, features: int, dimensions: int, dtype: jnp.dtype) -> jax.Array:
    """Returns `[features, d]`, a random orthonormal basis of `d = min(features, dimensions)` rows.

    With `features` of at most `dimensions` it is the identity.
    """
    if features <= dimensions:
        return jnp.eye(features, dtype=dtype)
    return linear_algebra.orthonormal(jax.random.normal(key, (features, dimensions), dtype))
