"""Weights on the simplex, exact, in a compiled round: a projection, and a quadratic program."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pfljax.core.client_data import mean_over
from pfljax.ops import linear_algebra


def project(point: jax.Array) -> jax.Array:
    """Returns the `a` `[n]` with `a >= 0` and `sum a = 1` that is closest to `point` `[n]`.

    The result is `max(point - c, 0)`, where `c` makes the positive entries sum to 1; these are the
    largest ones of `point`, and their number is found by sorting.
    """
    ordered = jnp.sort(point, descending=True)
    count = jnp.arange(1, point.shape[0] + 1)
    shifts = (jnp.cumsum(ordered) - 1) / count
    number = jnp.sum(ordered > shifts)  # at least 1, as the largest entry exceeds itself less 1
    return jnp.maximum(point - shifts[jnp.maximum(number, 1) - 1], 0)


def minimize(matrix: jax.Array, allowed: jax.Array, least: float = 0.0) -> jax.Array:
    """Returns the `a` `[n]` that minimizes `a^T matrix a` with `a >= 0` and `sum a = 1`.

    Up to its scale, `a` is the `b >= 0` that minimizes `b^T Q b / 2 - sum b`, which an active set
    method finds exactly: solve for the free entries; if one would become negative, stop there and
    fix it at zero, otherwise free the entry with the largest gain (Lawson and Hanson 1974,
    chapter 23).

    Args:
      matrix: `[n, n]`, symmetric and positive semidefinite.
      allowed: `[n]` bool; the other entries are zero. If none is allowed, all are zero.
      least: Entries of the optimum up to this value are set to zero, and the others rescaled.
    """
    size = allowed.shape[0]
    scale = mean_over(jnp.diag(matrix), allowed)
    accuracy = 10 * jnp.finfo(matrix.dtype).eps
    identity = jnp.eye(size, dtype=matrix.dtype)
    matrix = matrix / jnp.where(scale > 0, scale, 1) + accuracy * identity

    def step(state):
        entries, free, _, count = state
        system = jnp.where(free[:, None] & free, matrix, identity)
        target = linear_algebra.solve(system, free.astype(matrix.dtype))
        sinking = free & (target <= 0)
        step_size = jnp.where(sinking, entries / jnp.where(sinking, entries - target, 1), 1)
        moved = jnp.where(free, entries + jnp.min(step_size) * (target - entries), 0)
        gain = jnp.where(allowed & ~free, 1 - matrix @ moved, -jnp.inf)
        entering = jnp.arange(size) == jnp.argmax(gain)
        blocked = jnp.any(sinking)
        free = jnp.where(
            blocked,
            free & ~(sinking & (step_size <= jnp.min(step_size))),
            free | (entering & (gain > 0)),
        )
        done = ~blocked & (jnp.max(gain) <= size * accuracy)
        return jnp.maximum(moved, 0) * free, free, done, count + 1

    entries = jnp.zeros(size, matrix.dtype)
    state = (entries, jnp.zeros(size, bool), ~jnp.any(allowed), 0)
    entries, _, _, _ = jax.lax.while_loop(lambda s: ~s[2] & (s[3] < 4 * size + 4), step, state)
    entries = jnp.where(entries > least * jnp.sum(entries), entries, 0)
    total = jnp.sum(entries)
    return entries / jnp.where(total > 0, total, 1)
