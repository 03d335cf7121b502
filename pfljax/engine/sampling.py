"""Which clients take part in a round: chosen inside the program, from the run's key."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from scipy import stats

SAMPLINGS = ("fixed", "poisson")

# Where a cohort is so small a part of the population, drawing again whoever was drawn twice costs
# less than putting everybody in random order.
_SMALL_PART = 1 / 16

# A Poisson cohort that would not fit its places is cut; this is how often that may happen.
_OVERFLOW_PROBABILITY = 1e-9


class CohortPlan(NamedTuple):
    """How cohorts are chosen (static).

    Attributes:
      num_clients: clients to choose from.
      size: clients in a cohort; for Poisson sampling, on average. All of them: full participation.
      sampling: 'fixed' (that many, without replacement) or 'poisson' (each client joins
        independently with probability size / num_clients).
      dropout: probability with which a chosen client fails before it trains.
    """

    num_clients: int
    size: int
    sampling: str = "fixed"
    dropout: float = 0.0

    @property
    def places(self) -> int:
        """The most clients that a cohort can have."""
        if self.sampling == "fixed" or self.size == self.num_clients:
            return self.size
        rate = self.size / self.num_clients
        largest = stats.binom.ppf(1 - _OVERFLOW_PROBABILITY, self.num_clients, rate)
        return min(self.num_clients, int(largest) + 1)


def _distinct(key: jax.Array, num_clients: int, places: int) -> jax.Array:
    """Chooses `places` different clients in time that does not depend on `num_clients`.

    A stream of uniform draws of which those seen before are left out is a uniform choice.

    Returns:
      `[places]` int32.
    """
    positions = jnp.arange(places)

    def redraw(carry):
        ids, repeated, number = carry
        fresh = jax.random.randint(
            jax.random.fold_in(key, number), (places,), 0, num_clients, jnp.int32
        )
        ids = jnp.where(repeated, fresh, ids)
        # Equal ids stand together then, one that had been accepted before any new one.
        ordered, _, order = jax.lax.sort((ids, repeated, positions), num_keys=3)
        again = jnp.concatenate([jnp.zeros(1, bool), ordered[1:] == ordered[:-1]])
        return ids, repeated.at[order].set(again), number + 1

    everybody = (jnp.zeros(places, jnp.int32), jnp.ones(places, bool), jnp.int32(0))
    ids, _, _ = jax.lax.while_loop(lambda carry: jnp.any(carry[1]), redraw, everybody)
    return ids


def sample(plan: CohortPlan, key: jax.Array) -> jax.Array:
    """Chooses a cohort.

    Args:
      plan: how.
      key: typed key of the round's own.

    Returns:
      `[plan.places]` int32 client ids, -1 in empty places.
    """
    choice_key, count_key, dropout_key = jax.random.split(key, 3)
    if plan.size == plan.num_clients:
        ids = jnp.arange(plan.num_clients, dtype=jnp.int32)
    else:
        if plan.places < _SMALL_PART * plan.num_clients:
            ids = _distinct(choice_key, plan.num_clients, plan.places)
        else:
            ids = jax.random.choice(choice_key, plan.num_clients, (plan.places,), replace=False)
            ids = ids.astype(jnp.int32)
        if plan.sampling == "poisson":
            # A uniform subset of binomial size is what independent coin flips give.
            rate = plan.size / plan.num_clients
            count = jax.random.binomial(count_key, plan.num_clients, rate)
            ids = jnp.where(jnp.arange(plan.places) < count, ids, -1)
    if plan.dropout > 0:
        stays = jax.random.bernoulli(dropout_key, 1 - plan.dropout, ids.shape)
        ids = jnp.where(stays, ids, -1)
    return ids


def deal(ids: jax.Array, sizes: jax.Array, *, num_devices: int, chunk: int) -> jax.Array:
    """Deals a cohort over devices so that they are level and neighbours are alike.

    Sorted by size and dealt back and forth, like cards, every device gets clients of every
    size, and the clients of a chunk need nearly the same number of steps.

    Args:
      ids: `[cohort]` int32, -1 in empty places.
      sizes: `[cohort]` int32, 0 in empty places.
      num_devices: how many hands.
      chunk: a hand's length is a multiple of it.

    Returns:
      `[num_devices, hand]` int32, filled up with -1.
    """
    hand = -(-ids.shape[0] // (num_devices * chunk)) * chunk
    order = jnp.argsort(jnp.where(ids < 0, -1, sizes), descending=True)
    filled = jnp.full((hand * num_devices,), -1, jnp.int32).at[: ids.shape[0]].set(ids[order])
    rows = filled.reshape(hand, num_devices)
    back = (jnp.arange(hand) % 2 == 1)[:, None]
    return jnp.where(back, rows[:, ::-1], rows).T
