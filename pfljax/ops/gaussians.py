"""Normal distributions of the features of each class, with one covariance, as classifiers.

Shapes in the docstrings: `n` examples, `C` classes, features of dimension `d`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pfljax.core.types import Params, PyTree
from pfljax.ops import linear_algebra, unit_box

# The fraction of a covariance in place of which a multiple of the identity has the same trace.
_SHRINKAGE = 1e-4
# Number of examples whose losses are computed at once.
_BLOCK = 256


class Gaussians(NamedTuple):
    """The distributions of the features of all classes.

    Attributes:
      means: `[C, d]`, the mean of each class.
      covariance: `[d, d]`, the covariance within every class.
    """

    means: jax.Array
    covariance: jax.Array


class Sample(NamedTuple):
    """Features of examples.

    Attributes:
      features: `[n, d]`.
      labels: `[n]` int32.
      mask: `[n]` bool, True for a real example.
    """

    features: jax.Array
    labels: jax.Array
    mask: jax.Array

    def counts(self, num_classes: int) -> jax.Array:
        """Returns `[C]`, the number of examples of each class."""
        member = jax.nn.one_hot(self.labels, num_classes, dtype=self.features.dtype)
        return jnp.sum(member * self.mask[:, None], axis=0)

    def fold(self, num_classes: int) -> jax.Array:
        """Returns `[n]` int32, 0 and 1 in turn for each class; -1 for padding or a lone example."""
        member = jax.nn.one_hot(self.labels, num_classes, dtype=jnp.int32) * self.mask[:, None]
        number = jnp.take_along_axis(jnp.cumsum(member, axis=0), self.labels[:, None], axis=1)
        alone = jnp.sum(member, axis=0)[self.labels] < 2
        return jnp.where(self.mask & ~alone, (number[:, 0] + 1) % 2, -1)


def estimate(
    sample: Sample, known: Gaussians, least_examples: int, ridge: float | jax.Array
) -> Gaussians:
    """Returns the distributions of a sample.

        m_c = mean(z_i: y_i = c);   S = sum_i (z_i - m_{y_i}) (z_i - m_{y_i})^T / (n - 1) + ridge I

    Args:
      sample: The features.
      known: The distributions whose mean is taken for a class with fewer examples.
      least_examples: Number of examples from which on a class has its own mean.
      ridge: Multiple of the identity in the covariance.
    """
    features = jnp.where(sample.mask[:, None], sample.features, 0)
    counts = sample.counts(known.means.shape[0])
    member = jax.nn.one_hot(sample.labels, counts.shape[0], dtype=features.dtype)
    sums = (member * sample.mask[:, None]).T @ features
    own = sums / jnp.maximum(counts, 1)[:, None]
    means = jnp.where((counts >= least_examples)[:, None], own, known.means)
    centred = jnp.where(sample.mask[:, None], features - means[sample.labels], 0)
    scatter = centred.T @ centred / jnp.maximum(jnp.sum(counts) - 1, 1)
    return Gaussians(means, scatter + ridge * jnp.eye(features.shape[1], dtype=features.dtype))


def interpolate(weights: jax.Array, local: Gaussians, common: Gaussians) -> Gaussians:
    """Returns `w local + (1 - w) common`, with `weights` `[2]` of the means and the covariance."""
    return Gaussians(
        weights[0] * local.means + (1 - weights[0]) * common.means,
        weights[1] * local.covariance + (1 - weights[1]) * common.covariance,
    )


def shrunk(covariance: jax.Array) -> jax.Array:
    """Returns `(1 - e) S + e tr(S) / d I` with a small `e`, a linear map of `S`."""
    size = covariance.shape[0]
    identity = jnp.eye(size, dtype=covariance.dtype)
    return (1 - _SHRINKAGE) * covariance + _SHRINKAGE * jnp.trace(covariance) / size * identity


def whitening(covariance: jax.Array) -> jax.Array:
    """Returns a `W` `[d, d]` with `W W^T = shrunk(S)^-1`, finite for any `S` but zero."""
    eigenvalues, vectors = linear_algebra.eigh(covariance)
    positive = jnp.maximum(eigenvalues, 0)  # rounding makes small ones negative
    return vectors / jnp.sqrt((1 - _SHRINKAGE) * positive + _SHRINKAGE * jnp.mean(positive))


def classifier(gaussians: Gaussians, log_priors: jax.Array) -> Params:
    """Returns the linear layer whose outputs are the logarithms of the classes' probabilities.

        log p(c | z) = z^T S^-1 m_c - m_c^T S^-1 m_c / 2 + log p(c) + constant

    Args:
      gaussians: The distributions, with `shrunk` covariance.
      log_priors: `[C]`, `log p(c)` up to a constant.

    Returns:
      `{'kernel': [d, C], 'bias': [C]}`, see `ops.linear`.
    """
    white = whitening(gaussians.covariance)
    means = gaussians.means @ white
    return {"kernel": white @ means.T, "bias": log_priors - 0.5 * jnp.sum(means**2, axis=1)}


class Interpolation(NamedTuple):
    """A sample in a basis that diagonalizes every interpolation of two covariances.

    In this basis the common covariance is the identity and the local one is diagonal, so that the
    classifier of an interpolation needs no further matrix factorization.

    Attributes:
      sample: The sample in this basis.
      local: `[C, d]`, the means of the local distributions in this basis.
      common: `[C, d]`, those of the common distributions.
      variances: `[d]`, the local variances in this basis.
      log_priors: `[C]`, as in `classifier`.
    """

    sample: Sample
    local: jax.Array
    common: jax.Array
    variances: jax.Array
    log_priors: jax.Array

    def loss(self, weights: jax.Array) -> jax.Array:
        """Returns `[]`, the mean cross-entropy of `classifier` on the sample; 0 without examples.

        Args:
          weights: `[2]`, as in `interpolate`.
        """
        return self._over_blocks(lambda block: block.summed_loss(weights))

    def expansion(self, weights: jax.Array) -> unit_box.Expansion:
        """Returns the `loss` with its first and second derivatives."""
        return self._over_blocks(lambda block: unit_box.expand(block.summed_loss, weights))

    def _over_blocks(self, function: Callable[[Interpolation], PyTree]) -> PyTree:
        """Returns the sum of a function over blocks of examples, divided by their number.

        Blocks without an example are skipped, as most clients have far fewer than the largest one.
        """
        capacity = self.sample.mask.shape[0]
        size = min(_BLOCK, capacity)
        positions = jnp.arange(capacity, dtype=jnp.int32)
        end = jnp.max(jnp.where(self.sample.mask, positions + 1, 0))

        def add(number, total):
            # The last block begins earlier where it would exceed the end, and its first examples
            # have been counted before.
            start = jnp.minimum(number * size, capacity - size)
            cut = [jax.lax.dynamic_slice_in_dim(rows, start, size) for rows in self.sample]
            rows = Sample(*cut)
            new = start + positions[:size] >= number * size
            block = self._replace(sample=rows._replace(mask=rows.mask & new))
            return jax.tree.map(jnp.add, total, function(block))

        shapes = jax.eval_shape(lambda: function(self))
        total = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        total = jax.lax.fori_loop(0, -(-end // size), add, total)
        count = jnp.maximum(jnp.sum(self.sample.mask), 1)
        return jax.tree.map(lambda leaf: leaf / count, total)

    def summed_loss(self, weights: jax.Array) -> jax.Array:
        """Returns `[]`, the sum of the cross-entropies over the sample."""
        means = weights[0] * self.local + (1 - weights[0]) * self.common
        precisions = 1 / (weights[1] * self.variances + 1 - weights[1])
        logits = (self.sample.features * precisions) @ means.T
        logits = logits - 0.5 * jnp.sum(means**2 * precisions, axis=1) + self.log_priors
        labels = self.sample.labels[:, None]
        losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels, axis=1)
        return jnp.sum(losses[:, 0] * self.sample.mask)


def interpolation(
    sample: Sample, local: Gaussians, common: Gaussians, white: jax.Array, log_priors: jax.Array
) -> Interpolation:
    """Returns a sample for the losses of interpolations of two distributions.

    Args:
      sample: The sample.
      local: The distributions that have the weight.
      common: The other distributions.
      white: `[d, d]`, the `whitening` of their covariance.
      log_priors: `[C]`, as in `classifier`.
    """
    variances, vectors = linear_algebra.eigh(white.T @ shrunk(local.covariance) @ white)
    basis = white @ vectors
    return Interpolation(
        sample._replace(features=sample.features @ basis),
        local.means @ basis,
        common.means @ basis,
        jnp.maximum(variances, jnp.finfo(variances.dtype).tiny),
        log_priors,
    )


def adapt(
    sample: Sample,
    common: Gaussians,
    log_priors: jax.Array,
    least_examples: int,
    ridge: float | jax.Array,
    single_weight: bool,
) -> Gaussians:
    """Returns the interpolation of a client's and the common distributions, by cross-validation.

    The weights minimize the sum of the losses on two folds, each with the distributions of the
    other; see `Sample.fold`. The result has these weights, and the distributions of all examples.
    Without any fold the weights are 0.

    Args:
      sample: The client's features.
      common: The common distributions.
      log_priors: `[C]`, as in `classifier`.
      least_examples: As in `estimate`.
      ridge: As in `estimate`.
      single_weight: Whether means and covariance have the same weight.
    """
    fold, white = sample.fold(common.means.shape[0]), whitening(common.covariance)

    def on_fold(number):
        held_out = sample._replace(mask=fold == number)
        others = sample._replace(mask=fold == 1 - number)
        local = estimate(others, common, least_examples, ridge)
        return interpolation(held_out, local, common, white, log_priors)

    first, second = on_fold(0), on_fold(1)

    # Of one or two weights, a linear map to the pair of weights.
    spread = jnp.ones((2, 1)) if single_weight else jnp.eye(2)
    spread = spread.astype(sample.features.dtype)

    def loss(weights):
        return first.loss(spread @ weights) + second.loss(spread @ weights)

    def expansion(weights):
        value, slope, curvature = jax.tree.map(
            jnp.add, first.expansion(spread @ weights), second.expansion(spread @ weights)
        )
        return unit_box.Expansion(value, spread.T @ slope, spread.T @ curvature @ spread)

    start = jnp.full(spread.shape[1], 0.5, sample.features.dtype)
    found = unit_box.minimize(loss, start, expansion=expansion)
    weights = spread @ jnp.where(jnp.any(fold >= 0), found, 0)
    return interpolate(weights, estimate(sample, common, least_examples, ridge), common)
