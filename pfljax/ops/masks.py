"""Masks over the entries of arrays: the largest entries, and the overlap of two masks."""

from __future__ import annotations

import jax
import jax.numpy as jnp

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
