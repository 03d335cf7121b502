"""Factorizations of one matrix, which under `vmap` run one after the other on CPUs.

jaxlib 0.10 hands a batch of matrices to LAPACK from several threads of one pool, and the threads
that do so wait for each other: with matrices of some hundred rows, a program with as many
independent batches as the pool has threads never ends. With smaller ones it is slow, as LAPACK
starts threads of its own for each matrix: eight batches of 15 eigendecompositions of 64 rows took
16 times as long together as one after the other (two cores, jaxlib 0.10.2).

Every function takes one matrix `[m, n]`. None has a reverse derivative under `vmap`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp


def _one_by_one(function: Callable) -> Callable:
    """Returns `function`, which under `vmap` runs in a loop on CPUs and as a batch elsewhere."""

    @functools.wraps(function)
    @jax.custom_batching.custom_vmap
    def looped(*arrays):
        return function(*arrays)

    @looped.def_vmap
    def of_batch(size, batched, *arrays):
        del size
        axes = [0 if own else None for own in batched]

        def in_turn(*arrays):
            own = [array for array, axis in zip(arrays, axes, strict=True) if axis == 0]

            def entry(entries):
                rest = iter(entries)
                pairs = zip(arrays, axes, strict=True)
                return looped(*(next(rest) if axis == 0 else array for array, axis in pairs))

            return jax.lax.map(entry, own)

        together = jax.vmap(function, in_axes=axes)
        found = jax.lax.platform_dependent(*arrays, cpu=in_turn, default=together)
        return found, jax.tree.map(lambda _: True, found)

    return looped


@_one_by_one
def cholesky(matrix: jax.Array) -> jax.Array:
    """Returns the lower triangular `L` with `L L^T = matrix`, symmetric and positive definite."""
    return jnp.linalg.cholesky(matrix)


@_one_by_one
def eigh(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the eigenvalues `[n]`, ascending, and eigenvectors `[n, n]` of a symmetric matrix."""
    values, vectors = jnp.linalg.eigh(matrix)
    return values, vectors


@_one_by_one
def orthonormal(matrix: jax.Array) -> jax.Array:
    """Returns the `Q` `[m, n]` of the reduced QR decomposition of a matrix with `m >= n`."""
    return jnp.linalg.qr(matrix)[0]


@_one_by_one
def solve(matrix: jax.Array, right: jax.Array) -> jax.Array:
    """Returns the `x` with `matrix x = right`, for `right` of shape `[n]` or `[n, k]`."""
    return jnp.linalg.solve(matrix, right)


@_one_by_one
def solve_lower(factor: jax.Array, right: jax.Array) -> jax.Array:
    """Returns the `x` with `factor x = right`, for a lower triangular factor."""
    return jax.scipy.linalg.solve_triangular(factor, right, lower=True)


@_one_by_one
def svd(matrix: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the thin singular value decomposition `U [m, k]`, `s [k]` and `V^T [k, n]`."""
    left, values, right = jnp.linalg.svd(matrix, full_matrices=False)
    return left, values, right
