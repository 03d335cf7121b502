"""Clients whose labels overlap little, as examples of different parts of the data."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def choose(class_counts: jax.Array, count: int) -> jax.Array:
    """Returns `[count]` int32, clients whose labels overlap little; -1 where there are too few.

    The first one has the most examples. Each further one has the least largest overlap
    `sum_c min(p_c, q_c)` of its label distribution p with that q of an earlier one.

    Args:
      class_counts: `[N, C]`, the number of examples of each label of each client.
      count: Number of clients to choose.
    """
    sizes = jnp.sum(class_counts, axis=1)
    shares = class_counts / jnp.maximum(sizes, 1)[:, None]
    chosen = [jnp.argmax(sizes)]
    overlap = jnp.where(sizes > 0, 0, 2.0)  # at most 1 between clients; chosen and empty ones: 2
    for _ in range(1, min(count, len(sizes))):
        last = chosen[-1]
        overlap = jnp.maximum(overlap, jnp.sum(jnp.minimum(shares, shares[last]), axis=1))
        overlap = overlap.at[last].set(2.0)
        chosen.append(jnp.argmin(overlap))
    anchors = jnp.stack(chosen).astype(jnp.int32)
    return jnp.pad(anchors, (0, count - len(chosen)), constant_values=-1)
