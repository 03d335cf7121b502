"""Epsilon-greedy choices of rows."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def choose(
    key: jax.Array,
    scores: jax.Array,
    usable: jax.Array,
    count: int,
    probability: float | jax.Array,
) -> jax.Array:
    """Chooses different rows one after another, each the best remaining one or a random one.

    Args:
      key: Typed PRNG key.
      scores: `[N]`, the scores of the rows; ties are broken randomly.
      usable: `[N]` bool; the other rows come last.
      count: Number of rows to choose, at most `N`.
      probability: `[]`, the probability of a random row, drawn independently for each row.

    Returns:
      `[count]` int32, the rows in the order of choice.
    """
    rows = jnp.arange(scores.shape[0], dtype=jnp.int32)
    explore_key, *rank_keys = jax.random.split(key, 3)

    def ranks(key, scores):
        ties = jax.random.bits(key, rows.shape)
        *_, order = jax.lax.sort((~usable, -scores, ties, rows), num_keys=3)
        return jnp.argsort(order)

    best, at_random = map(ranks, rank_keys, (scores, jnp.zeros_like(scores)))

    def step(left, explores):
        rank = jnp.where(explores, at_random, best)
        row = jnp.argmin(jnp.where(left, rank, rows.shape[0])).astype(rows.dtype)
        return left & (rows != row), row

    explores = jax.random.uniform(explore_key, (count,)) < probability
    return jax.lax.scan(step, jnp.ones_like(usable), explores)[1]
