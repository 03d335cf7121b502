"""Splitting clusters of clients in two by the similarities of their updates."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def in_first_half(similarity: jax.Array, together: jax.Array, ids: jax.Array) -> jax.Array:
    """Returns `[K]` bool, which clients are in the same half of their cluster as its first client.

    The halves are those with the smallest possible largest similarity between them: what is left
    of the maximum spanning tree without its weakest edge. The weakest edge on the best path between
    two clients is computed for all pairs, by `K` relaxations.

    Args:
      similarity: `[K, K]`, the cosine similarities of the clients' updates.
      together: `[K, K]` bool, whether two clients are in the same cluster.
      ids: `[K]` int32, the ids of the clients; the first client of a cluster has the smallest.
    """
    itself = jnp.eye(ids.shape[0], dtype=bool)
    paths = jnp.where(itself, jnp.inf, jnp.where(together, similarity, -jnp.inf))

    def relax(through, paths):
        return jnp.maximum(paths, jnp.minimum(paths[:, through, None], paths[through]))

    paths = jax.lax.fori_loop(0, ids.shape[0], relax, paths)
    weakest = jnp.min(jnp.where(together, paths, jnp.inf), axis=1)
    first = jnp.argmin(jnp.where(together, ids, jnp.iinfo(ids.dtype).max), axis=1)
    return jnp.take_along_axis(paths, first[:, None], axis=1)[:, 0] > weakest
