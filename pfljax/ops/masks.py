"""Masks over the entries of arrays: the largest entries, overlaps, and steps on masked entries."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from pfljax.core.types import PyTree


def least_of_largest(magnitudes: jax.Array, count: jax.Array) -> jax.Array:
    """Returns the smallest of the largest entries of an array.

    The bits of numbers that are not negative have the order of the numbers, so that it is found bit
    by bit; on a CPU that takes a fraction of the time of sorting.

    Args:
      magnitudes: `[n]` floats of 32 or 64 bits, none of them negative.
      count: `[]` int32, the number of largest entries, at least 1.
    """
    kind = jnp.int64 if magnitudes.dtype == jnp.float64 else jnp.int32
    codes = jax.lax.bitcast_convert_type(magnitudes, kind)
    highest = jnp.iinfo(kind).bits - 2

    def step(index, found):
        raised = found | jnp.left_shift(jnp.ones((), kind), (highest - index).astype(kind))
        return jnp.where(jnp.sum(codes >= raised) >= count, raised, found)

    found = jax.lax.fori_loop(0, highest + 1, step, jnp.zeros((), kind))
    return jax.lax.bitcast_convert_type(found, magnitudes.dtype)


def largest(scores: jax.Array, fraction: float) -> jax.Array:
    """Returns a mask of the `fraction` largest entries of an array; entries of 0 are excluded.

    Args:
      scores: Floats of 32 or 64 bits, none of them negative.
      fraction: From 0 to 1; `floor(fraction * n)` of the `n` entries, and those equal to the last.
    """
    count = jnp.floor(fraction * scores.size).astype(jnp.int32)
    least = least_of_largest(scores.ravel(), jnp.maximum(count, 1))
    return (scores >= least) & (scores > 0) & (count > 0)


def any_entry(masks: PyTree) -> jax.Array:
    """Returns `[n]` bool, which of `n` masks, leaves `[n, ...]`, have any True entry."""
    leaves = [leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(masks)]
    return sum(jnp.any(leaf, axis=1) for leaf in leaves) > 0


def overlaps(masks: PyTree, others: PyTree) -> jax.Array:
    """Returns `[n, m]`, `1 - |M_i - M_j|_1 / (2 |M_i|_1)` of each of `n` and each of `m` masks.

    The overlap with an empty mask is undefined, and returned as 0; use `any_entry` to exclude such
    rows from a mean, a maximum or a group.

    Args:
      masks: The `n` masks, leaves `[n, ...]` bool.
      others: The `m` masks, leaves `[m, ...]` bool.
    """
    rows, columns = (
        [
            leaf.reshape(leaf.shape[0], -1).astype(jnp.result_type(float))
            for leaf in jax.tree.leaves(stacked)
        ]
        for stacked in (masks, others)
    )
    common = sum(a @ b.T for a, b in zip(rows, columns, strict=True))
    sizes, other_sizes = (sum(jnp.sum(leaf, axis=1) for leaf in side) for side in (rows, columns))
    differences = sizes[:, None] + other_sizes - 2 * common
    known = (sizes > 0)[:, None] & (other_sizes > 0)
    return jnp.where(known, 1 - differences / jnp.maximum(2 * sizes, 1)[:, None], 0)


def grown(mask: jax.Array, scores: jax.Array, fraction: float, target: float) -> jax.Array:
    """Returns a mask of an array, with the entries of the largest scores among the others added.

    Of the entries outside of the mask it adds the `fraction` with the largest scores, and all that
    are equal to the smallest of these; entries of score 0 are excluded.

    Args:
      mask: `[...]` bool.
      scores: `[...]`, not negative.
      fraction: Fraction of the entries outside of the mask that are added.
      target: Fraction of all entries; a mask with more True entries does not grow.
    """
    outside = jnp.sum(~mask)
    count = outside - jnp.round((1 - fraction) * outside).astype(jnp.int32)
    least = least_of_largest(jnp.where(mask, 0, scores).ravel(), jnp.maximum(count, 1))
    added = ~mask & (scores >= least) & (scores > 0) & (count > 0)
    return mask | added & (jnp.mean(mask) <= target)


def alternating(
    optimizer: optax.GradientTransformation, mask: PyTree, steps: jax.Array
) -> optax.GradientTransformation:
    """Returns an optimizer that moves only the entries of a mask for some steps, then the others.

    After as many steps on the others it begins again. The entries that do not move have the
    gradient zero, and keep their state of the optimizer up to that.

    Args:
      optimizer: The optimizer of all entries.
      mask: A tree of bool like the params.
      steps: `[]` int32, the number of steps before the turn changes; 0 if no step is taken.
    """

    def init(params):
        return optimizer.init(params), jnp.zeros((), jnp.int32)

    def update(gradient, state, params):
        inner, count = state
        first = (count // jnp.maximum(steps, 1)) % 2 == 0

        def moving(tree):
            return jax.tree.map(lambda x, m: jnp.where(m == first, x, 0), tree, mask)

        updates, inner = optimizer.update(moving(gradient), inner, params)
        return moving(updates), (inner, count + 1)

    return optax.GradientTransformation(init, update)
