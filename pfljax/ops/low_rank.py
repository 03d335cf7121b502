"""Compression of a model: of each matrix only its leading singular values."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pfljax.core.types import Params


def compress(model: Params, energy: jax.Array) -> tuple[Params, jax.Array]:
    """Replaces every matrix by the least of its leading singular values that hold `energy`.

    Args:
      model: nested dict of arrays; one with more than two axes is a matrix of its last, and one
        with fewer is left as it is.
      energy: `[]`, share of the sum of the squared singular values that must be exceeded; where
        all of them do not exceed it, all are kept, and the first one always is.

    Returns:
      The model, and `[]`, how many numbers describe it.
    """

    def one(leaf):
        if leaf.ndim < 2:
            return leaf, leaf.size
        left, values, right = jnp.linalg.svd(leaf.reshape(-1, leaf.shape[-1]), full_matrices=False)
        held = jnp.cumsum(values**2)
        held_before = jnp.concatenate([jnp.zeros_like(held[:1]), held[:-1]])
        kept = held_before <= energy * held[-1]
        numbers = jnp.sum(kept) * (left.shape[0] + right.shape[1] + 1)
        return ((left * (values * kept)) @ right).reshape(leaf.shape), jnp.minimum(
            numbers, leaf.size
        )

    leaves, structure = jax.tree.flatten(model)
    leaves, numbers = zip(*map(one, leaves), strict=True)
    return jax.tree.unflatten(structure, leaves), sum(numbers)
