"""Mixtures of normal distributions with diagonal covariances, each with a distribution of labels.

Shapes in the docstrings: `n` examples of dimension `d`, `M` components, `C` classes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

# The smallest share of the examples from which a component is estimated.
_LEAST = 1e-6

# How far from the mean, in standard deviations, the two parts of a split component start.
_OFFSET = 0.5


class Mixture(NamedTuple):
    """A mixture `sum_a pi_a N(x; mu_a, diag(v_a)) theta_a(y)` over inputs and labels.

    Attributes:
      weights: `[M]`, `pi`; they sum to 1, and 0 marks a slot without a component.
      means: `[M, d]`, `mu`.
      variances: `[M, d]`, `v`.
      labels: `[M, C]`, `theta`, the probabilities of the labels.
    """

    weights: jax.Array
    means: jax.Array
    variances: jax.Array
    labels: jax.Array

    def whitened(self, points: jax.Array) -> jax.Array:
        """Returns `[M, n, d]`, `(x - mu_a) / sqrt(v_a)` of points `[n, d]`."""
        return (points - self.means[:, None]) / jnp.sqrt(self.variances)[:, None]

    def log_joint(self, white: jax.Array) -> jax.Array:
        """Returns `[M, n]`, `log pi_a N(x; mu_a, v_a)` of `whitened` points; -inf for no slot."""
        logs = jnp.sum(jnp.log(self.variances), axis=1)
        constant = 0.5 * white.shape[-1] * math.log(2 * math.pi) + 0.5 * logs
        prior = jnp.log(self.weights) - constant
        return prior[:, None] - 0.5 * jnp.sum(white**2, axis=-1)

    def log_labels(self, points: jax.Array) -> jax.Array:
        """Returns `[n, C]`, the log probabilities of the labels of points `[n, d]`."""
        shares = jax.nn.log_softmax(self.log_joint(self.whitened(points)), axis=0)
        return jax.nn.logsumexp(shares[..., None] + _log(self.labels)[:, None], axis=0)

    def global_variance(self) -> jax.Array:
        """Returns `[d]`, the variance of the whole mixture."""
        mean = self.weights @ self.means
        return self.weights @ (self.variances + (self.means - mean) ** 2)


class Statistics(NamedTuple):
    """Sums over examples with responsibilities `q`, relative to the mixture that has these.

    With `z_a = (x - mu_a) / sqrt(v_a)` each block is expected to have a norm of one at most for an
    example that the component generates, whatever the dimension.

    Attributes:
      counts: `[M, C]`, `sum_i q_ia` over the examples of each label.
      first: `[M, d]`, `sum_i q_ia z_ia / sqrt(d)`.
      second: `[M, d]`, `sum_i q_ia (z_ia^2 - 1) / sqrt(2 d)`.
    """

    counts: jax.Array
    first: jax.Array
    second: jax.Array

    @classmethod
    def of(
        cls, mixture: Mixture, points: jax.Array, labels: jax.Array, mask: jax.Array
    ) -> tuple[Statistics, jax.Array]:
        """Returns the statistics of examples, and `[]`, the sum of their log densities.

            q_ia ~ pi_a N(x_i; mu_a, v_a) theta_a(y_i),   sum_a q_ia = 1

        Args:
          mixture: The mixture.
          points: `[n, d]`.
          labels: `[n]`, integers.
          mask: `[n]` bool, True for a real example.
        """
        white, size = mixture.whitened(points), points.shape[1]
        member = jax.nn.one_hot(labels, mixture.labels.shape[1], dtype=points.dtype)
        scores = mixture.log_joint(white) + _log(mixture.labels @ member.T)
        densities = jax.nn.logsumexp(scores, axis=0)
        shares = jnp.exp(scores - densities) * mask
        first = jnp.einsum("mn,mnd->md", shares, white)
        second = jnp.einsum("mn,mnd->md", shares, white**2 - 1)
        found = cls(shares @ member, first / math.sqrt(size), second / math.sqrt(2 * size))
        return found, jnp.sum(densities * mask)


def no_statistics(mixture: Mixture) -> Statistics:
    """Returns the statistics of no example, of the shapes of `mixture`."""
    zeros = jnp.zeros_like(mixture.means)
    return Statistics(jnp.zeros_like(mixture.labels), zeros, zeros)


def maximize(
    known: Mixture,
    mean: Statistics,
    *,
    least_weight: float | jax.Array,
    variance_floor: float | jax.Array,
    label_floor: float | jax.Array,
) -> Mixture:
    """Returns the mixture of greatest likelihood for statistics, the maximization step.

        N_a = sum_c counts_ac;   pi_a = N_a / sum_b N_b
        mu_a <- mu_a + sqrt(v_a) m_a,   m_a = sum q z / N_a
        v_a <- v_a (sum q z^2 / N_a - m_a^2)
        theta_a = counts_a / N_a

    Entries that noise has made negative count as zero.

    Args:
      known: The mixture to which the statistics are relative; a component whose `N_a` is below the
        least weight keeps its distribution there, with the weight 0.
      mean: Statistics divided by the number of examples.
      least_weight: Share of the examples below which a component is removed.
      variance_floor: The least variance, as a share of the variance of the whole `known`.
      label_floor: Weight of the uniform distribution in each distribution of labels.
    """
    counts = jnp.maximum(mean.counts, 0)
    total = jnp.sum(counts, axis=1)
    total = total / jnp.maximum(jnp.sum(total), _LEAST)
    here = total >= jnp.maximum(least_weight, _LEAST)
    counted = jnp.where(here, jnp.sum(counts, axis=1), 1)[:, None]
    size, deviations = known.means.shape[1], jnp.sqrt(known.variances)
    shift = mean.first * math.sqrt(size) / counted
    factor = 1 + mean.second * math.sqrt(2 * size) / counted - shift**2
    floor = jnp.maximum(variance_floor * known.global_variance(), jnp.finfo(shift.dtype).tiny)
    labels = (1 - label_floor) * counts / counted + label_floor / counts.shape[1]
    found = Mixture(
        jnp.where(here, total, 0),
        jnp.where(here[:, None], known.means + deviations * shift, known.means),
        jnp.where(here[:, None], jnp.maximum(known.variances * factor, floor), known.variances),
        jnp.where(here[:, None], labels, known.labels),
    )
    weights = found.weights / jnp.maximum(jnp.sum(found.weights), _LEAST)
    return found._replace(weights=jnp.where(jnp.any(here), weights, known.weights))


def split_heaviest(mixture: Mixture) -> Mixture:
    """Returns the mixture with its heaviest component split in two, if a slot is left.

    Each part has half the weight; the means move by half a standard deviation in each dimension,
    one up and one down.
    """
    heaviest, slot = jnp.argmax(mixture.weights), jnp.argmin(mixture.weights)
    step = _OFFSET * jnp.sqrt(mixture.variances[heaviest])
    split = jax.tree.map(lambda leaf: leaf.at[slot].set(leaf[heaviest]), mixture)
    both = jnp.stack([heaviest, slot])
    split = split._replace(
        weights=split.weights.at[both].multiply(0.5),
        means=split.means.at[both].add(jnp.stack([-step, step])),
    )
    free = mixture.weights[slot] == 0
    return jax.tree.map(lambda new, old: jnp.where(free, new, old), split, mixture)


def single(slots: int, dimensions: int, classes: int, dtype: jnp.dtype) -> Mixture:
    """Returns a standard normal distribution with uniform labels, in the first of the slots."""
    return Mixture(
        jnp.zeros(slots, dtype).at[0].set(1),
        jnp.zeros((slots, dimensions), dtype),
        jnp.ones((slots, dimensions), dtype),
        jnp.full((slots, classes), 1 / classes, dtype),
    )


def _log(probabilities: jax.Array) -> jax.Array:
    """Returns the logarithm, for zero that of the smallest positive number."""
    return jnp.log(jnp.maximum(probabilities, jnp.finfo(probabilities.dtype).tiny))
