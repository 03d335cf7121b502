"""Which clients take part in a round: chosen inside the program, from the run's key."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

SAMPLINGS = ("fixed", "poisson")

# Where a cohort is so small a part of the population, drawing again whoever was drawn twice costs
# less than putting everybody in random order.
_SMALL_PART = 1 / 16

# Into so many groups of about the same size a cohort is divided, to be dealt level within each.
_GROUPS = 32

# A cohort that would not fit its places is cut; this is how often that may happen.
OVERFLOW_PROBABILITY = 1e-9


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
        largest = stats.binom.ppf(1 - OVERFLOW_PROBABILITY, self.num_clients, rate)
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


def hand_size(places: int, num_devices: int, chunk: int) -> int:
    """Returns how many of a cohort's places each device gets, whole chunks of them."""
    return -(-places // (num_devices * chunk)) * chunk


def deal(
    ids: jax.Array, sizes: jax.Array, *, num_devices: int, chunk: int, at_home: bool = False
) -> jax.Array:
    """Deals a cohort over devices so that they are level and neighbours are alike.

    Sorted by size, each device gets one of every few neighbours, so that the clients of a chunk
    need nearly the same number of steps. The neighbours that differ most are given away first, the
    largest of them to the device that has least so far.

    Args:
      ids: `[cohort]` int32, -1 in empty places.
      sizes: `[cohort]` int32, 0 in empty places.
      num_devices: how many hands.
      chunk: a hand's length is a multiple of it.
      at_home: of clients of about the same size, give device `i % num_devices` client `i`, as long
        as all devices get as many.

    Returns:
      `[num_devices, hand]` int32, filled up with -1.
    """
    hand = hand_size(ids.shape[0], num_devices, chunk)
    order = jnp.argsort(jnp.where(ids < 0, -1, sizes), descending=True)
    filled = jnp.full((hand * num_devices,), -1, jnp.int32).at[: ids.shape[0]].set(ids[order])
    if num_devices == 1:
        return filled[None]
    if at_home:
        return filled[jnp.argsort(_devices(filled, num_devices))].reshape(num_devices, hand)
    neighbours = filled.reshape(hand, num_devices)
    loads = jnp.zeros(filled.shape).at[: ids.shape[0]].set(sizes[order]).reshape(neighbours.shape)

    def give(total, row):
        turn = jnp.argsort(jnp.argsort(total))
        return total + loads[row][turn], neighbours[row][turn]

    rows = jnp.argsort(loads[:, 0] - loads[:, -1], descending=True)
    _, given = jax.lax.scan(give, jnp.zeros(num_devices), rows)
    return jnp.zeros_like(neighbours).at[rows].set(given).T


def _devices(ids: jax.Array, num_devices: int) -> jax.Array:
    """Chooses devices for a cohort sorted by size, most clients being at home.

    Of every group of neighbours each device takes as many: first those that live there, then
    whoever found no room at home.

    Args:
      ids: `[num_devices * hand]` int32; -1 is nobody, who fits everywhere.
      num_devices: how many hands.

    Returns:
      `[num_devices * hand]` int32, each device `hand` times.
    """
    hand = ids.shape[0] // num_devices
    groups = min(_GROUPS, hand)
    starts = -(-np.arange(groups + 1) * hand // groups)
    room = np.repeat(np.diff(starts), np.diff(starts) * num_devices)  # for each device
    group = np.repeat(np.arange(groups), np.diff(starts) * num_devices)
    start = num_devices * starts[group]  # of the group's places, of which each device has `room`

    # Back and forth, like cards: every other group begins with its smallest clients.
    turn = np.arange(ids.shape[0])
    ends = start + num_devices * room
    turn = np.where(group % 2 == 1, start + ends - 1 - turn, turn)
    ids = ids[turn]

    home = jnp.where(ids < 0, num_devices, ids % num_devices)
    before = _rank(group * (num_devices + 1) + home)
    stays = (home < num_devices) & (before < room)
    place = start + home * room + before
    taken = jnp.zeros(ids.shape, bool).at[jnp.where(stays, place, ids.shape[0])].set(True)
    # In each group as many places are left as clients.
    moving, left = jnp.argsort(2 * group + stays), jnp.argsort(2 * group + taken)
    place = jnp.where(stays, place, jnp.zeros_like(left).at[moving].set(left))
    return ((place - start) // room)[turn]


def _rank(values: jax.Array) -> jax.Array:
    """Returns `[n]`, for each of the values `[n]` how many equal ones stand before it."""
    order = jnp.argsort(values)
    ordered = values[order]
    rank = jnp.arange(values.shape[0]) - jnp.searchsorted(ordered, ordered)
    return jnp.zeros_like(rank).at[order].set(rank)
