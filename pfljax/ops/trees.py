"""Forests of binary decision trees of one depth, grown level by level from histograms.

Shapes in the docstrings: `n` examples of `d` numbers, `T` trees for each of `K` outputs, depth `D`,
`b` bins for each of the numbers. The nodes of a level are numbered from the left.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

# Gains that differ by fewer than this many roundings are equal.
_ROUNDING = 32


class Forest(NamedTuple):
    """Trees whose inner nodes send an example to the left where `x[feature] <= threshold`.

    Attributes:
      features: `[T, K, 2^D - 1]` int32, the number that each inner node compares, level by level.
      thresholds: `[T, K, 2^D - 1]`; the largest float in a node that is not split.
      values: `[T, K, 2^D]`, the outputs of the leaves; those of a tree that is not grown are zero.
    """

    features: jax.Array
    thresholds: jax.Array
    values: jax.Array

    @property
    def depth(self) -> int:
        """The number of comparisons from the root of a tree to a leaf."""
        return self.values.shape[-1].bit_length() - 1

    def paths(self, points: jax.Array) -> jax.Array:
        """Returns `[D + 1, n, T, K]` int32, the node of each level that points `[n, d]` reach."""
        trees, outputs = (jnp.arange(size) for size in self.values.shape[:2])
        rows = jnp.arange(points.shape[0])[:, None, None]
        nodes = [jnp.zeros((points.shape[0], *self.values.shape[:2]), jnp.int32)]
        for level in range(self.depth):
            here = trees[:, None], outputs, 2**level - 1 + nodes[-1]
            right = points[rows, self.features[here]] > self.thresholds[here]
            nodes.append(2 * nodes[-1] + right)
        return jnp.stack(nodes)

    def outputs(self, leaves: jax.Array, stop: jax.Array | int) -> jax.Array:
        """Returns `[n, K]`, the sums of the values at leaves `[n, T, K]` of trees before `stop`."""
        trees, outputs = (jnp.arange(size) for size in self.values.shape[:2])
        values = self.values[trees[:, None], outputs, leaves]
        return jnp.sum(jnp.where(trees[:, None] < stop, values, 0), axis=1)


class Rules(NamedTuple):
    """How a node is split and what a leaf's value is.

    Attributes:
      rate: Factor of the Newton step in a leaf.
      lam: Added to the sum of second derivatives.
      min_child_weight: The least sum of second derivatives on each side of a split.
      min_gain: The gain that a split must exceed.
    """

    rate: float | jax.Array
    lam: float | jax.Array
    min_child_weight: float | jax.Array
    min_gain: float | jax.Array

    def ratio(self, numerator: jax.Array, seconds: jax.Array) -> jax.Array:
        """Returns `numerator / (H + lam)` for sums `H`; zero where the divisor is not positive."""
        divisor = jnp.maximum(seconds, 0) + self.lam
        return jnp.where(divisor > 0, numerator / jnp.where(divisor > 0, divisor, 1), 0)


def empty(trees: int, outputs: int, depth: int, dtype: jnp.dtype) -> Forest:
    """Returns a forest of trees that are not grown."""
    inner = (trees, outputs, 2**depth - 1)
    largest = jnp.full(inner, jnp.finfo(dtype).max, dtype)
    return Forest(jnp.zeros(inner, jnp.int32), largest, jnp.zeros((*inner[:2], 2**depth), dtype))


def join(first: Forest, second: Forest) -> Forest:
    """Returns the trees of two forests of one depth, one forest after the other."""
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), first, second)


def bins_of(points: jax.Array, edges: jax.Array) -> jax.Array:
    """Returns `[n, d]` int32, the number of edges `[d, b - 1]` that points `[n, d]` exceed."""
    return jnp.sum(points[..., None] > edges, axis=-1, dtype=jnp.int32)


def no_histogram(outputs: int, depth: int, dimensions: int, bins: int, dtype) -> jax.Array:
    """Returns zeros `[K, 2^(D - 1), d, b, 2]`, the histogram of no example."""
    return jnp.zeros((outputs, 2 ** (depth - 1), dimensions, bins, 2), dtype)


def add_to_histogram(
    histogram: jax.Array, nodes: jax.Array, bins: jax.Array, derivatives: jax.Array
) -> jax.Array:
    """Returns a histogram with more examples.

    Args:
      histogram: `[K, nodes, d, b, 2]`.
      nodes: `[n, K]` int32, the node that each example reaches in the tree of each output.
      bins: `[n, d]` int32, the result of `bins_of`.
      derivatives: `[n, K, 2]`, the first and second derivatives of the loss; zeros for padding.
    """
    outputs, numbers = jnp.arange(nodes.shape[1])[:, None], jnp.arange(bins.shape[1])
    terms = jnp.broadcast_to(derivatives[:, :, None], (*nodes.shape, bins.shape[1], 2))
    return histogram.at[outputs, nodes[:, :, None], numbers, bins[:, None]].add(terms)


def grow(
    forest: Forest,
    histogram: jax.Array,
    edges: jax.Array,
    tree: jax.Array,
    level: jax.Array,
    rules: Rules,
) -> Forest:
    """Returns a forest in which one level of a tree is split, for all outputs.

        gain = (G_L^2 / (H_L + lam) + G_R^2 / (H_R + lam) - G^2 / (H + lam)) / 2
        value = -rate G / (H + lam),   of the node to which a leaf belongs so far

    The split with the greatest gain is taken, the first of equal ones by feature and bin; gains
    that differ by rounding errors are equal, so that the order of a sum has no effect. A node
    without a split that the rules allow sends all examples to the left.

    Args:
      forest: The forest.
      histogram: `[K, 2^(D - 1), d, b, 2]`, the sums of both derivatives, `G` and `H`.
      edges: `[d, b - 1]`, the upper edge of each bin but the last.
      tree: `[]` int32, the tree; nothing changes for one that the forest does not have.
      level: `[]` int32, the level, from 0 to `D - 1`; the levels before are grown.
      rules: The rules.
    """
    left = jnp.cumsum(histogram, axis=3)
    total = left[:, :, :, -1:]
    right = total - left

    def score(sums):
        return rules.ratio(sums[..., 0] ** 2, sums[..., 1])

    gains = 0.5 * (score(left) + score(right) - score(total))[..., :-1]
    least = jnp.minimum(left[..., 1], right[..., 1])[..., :-1]
    gains = jnp.where(least >= rules.min_child_weight, gains, -jnp.inf)
    flat = gains.reshape(*gains.shape[:2], -1)
    highest = jnp.max(flat, axis=-1)
    of_node = jnp.max(score(total)[..., 0], axis=2)
    rounding = _ROUNDING * jnp.finfo(flat.dtype).eps * (jnp.maximum(highest, 0) + of_node)
    best = jnp.argmax(flat >= (highest - rounding)[..., None], axis=-1)
    splits = highest > rules.min_gain + rounding
    feature, bin_number = jnp.divmod(best, edges.shape[1])
    feature = jnp.where(splits, feature, 0)
    largest = jnp.finfo(edges.dtype).max
    threshold = jnp.where(splits, edges[feature, bin_number], largest)

    outputs, nodes = (jnp.arange(size) for size in flat.shape[:2])
    chosen = outputs[:, None], nodes, feature, jnp.where(splits, bin_number, edges.shape[1])
    children = jnp.stack([left[chosen], right[chosen]], axis=2).reshape(flat.shape[0], -1, 2)
    values = -rules.rate * rules.ratio(children[..., 0], children[..., 1])

    count = 2**level
    nowhere = forest.features.shape[2]
    slots = jnp.where(nodes < count, count - 1 + nodes, nowhere)
    leaves = jnp.arange(forest.values.shape[2]) // (forest.values.shape[2] // (2 * count))
    where = tree, outputs[:, None], slots
    return Forest(
        forest.features.at[where].set(feature.astype(jnp.int32), mode="drop"),
        forest.thresholds.at[where].set(threshold, mode="drop"),
        forest.values.at[tree].set(values[:, leaves], mode="drop"),
    )


def even_edges(limit: float | jax.Array, dimensions: int, bins: int, dtype) -> jax.Array:
    """Returns the edges `[d, b - 1]` of bins of one width between `-limit` and `limit`."""
    edges = limit * (2 * jnp.arange(1, bins, dtype=dtype) / bins - 1)
    return jnp.tile(edges.astype(dtype), (dimensions, 1))


def quantile_edges(edges: jax.Array, counts: jax.Array, limit: float | jax.Array) -> jax.Array:
    """Returns edges `[d, b - 1]` of bins with equal counts, from those of other bins.

    Examples are taken to be spread evenly within a bin, and the outer bins to end at `-limit` and
    `limit`; with several rounds the bins become narrow where the examples are.

    Args:
      edges: `[d, b - 1]`, the edges of the bins that were counted.
      counts: `[d, b]`, numbers of examples.
      limit: The ends of the outer bins.
    """
    bins = counts.shape[1]
    counts = jnp.maximum(counts, 0)  # noise may make them negative
    reached = jnp.cumsum(jnp.pad(counts, ((0, 0), (1, 0))), axis=1)
    bounds = jnp.pad(edges, ((0, 0), (1, 1)))
    bounds = bounds.at[:, 0].set(-limit).at[:, -1].set(limit)
    levels = reached[:, -1:] * jnp.arange(1, bins, dtype=edges.dtype) / bins
    return jax.vmap(jnp.interp)(levels, reached, bounds)
