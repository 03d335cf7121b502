"""Sampling of cohorts, inside the program, from the key of the run."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

SAMPLINGS = ("fixed", "poisson")

# If the cohort is a small fraction of the population, redrawing duplicates costs less than
# permuting all clients.
_SMALL_PART = 1 / 16

# Number of groups of clients of similar size, within each of which the load is balanced.
_GROUPS = 32

# Probability that a Poisson cohort exceeds its capacity and is truncated.
OVERFLOW_PROBABILITY = 1e-9


class CohortPlan(NamedTuple):
    """The parameters of cohort sampling (static).

    Attributes:
      num_clients: Number of clients to sample from.
      size: Number of clients in a cohort; for Poisson sampling, the mean. All clients for full
        participation.
      sampling: 'fixed' (this number, without replacement) or 'poisson' (each client joins
        independently with probability size / num_clients).
      dropout: The probability that a sampled client fails before it trains.
    """

    num_clients: int
    size: int
    sampling: str = "fixed"
    dropout: float = 0.0

    @property
    def is_full(self) -> bool:
        """Whether all clients take part in every round."""
        return self.size == self.num_clients and self.dropout == 0

    @property
    def capacity(self) -> int:
        """The maximum number of clients in a cohort."""
        if self.sampling == "fixed" or self.size == self.num_clients:
            return self.size
        rate = self.size / self.num_clients
        from scipy import stats  # imported here, as it takes a third of a second

        largest = stats.binom.ppf(1 - OVERFLOW_PROBABILITY, self.num_clients, rate)
        return min(self.num_clients, int(largest) + 1)


def _distinct(key: jax.Array, num_clients: int, capacity: int) -> jax.Array:
    """Draws `capacity` different clients in time that does not depend on `num_clients`.

    A stream of uniform draws without repeated ones is a uniform sample without replacement.

    Returns:
      `[capacity]` int32.
    """
    positions = jnp.arange(capacity)

    def redraw(carry):
        ids, repeated, number = carry
        fresh = jax.random.randint(
            jax.random.fold_in(key, number), (capacity,), 0, num_clients, jnp.int32
        )
        ids = jnp.where(repeated, fresh, ids)
        # Equal ids are then adjacent, with an accepted one before new ones.
        ordered, _, order = jax.lax.sort((ids, repeated, positions), num_keys=3)
        again = jnp.concatenate([jnp.zeros(1, bool), ordered[1:] == ordered[:-1]])
        return ids, repeated.at[order].set(again), number + 1

    all_slots = (jnp.zeros(capacity, jnp.int32), jnp.ones(capacity, bool), jnp.int32(0))
    ids, _, _ = jax.lax.while_loop(lambda carry: jnp.any(carry[1]), redraw, all_slots)
    return ids


def sample(plan: CohortPlan, key: jax.Array) -> jax.Array:
    """Samples a cohort.

    Args:
      plan: The parameters of sampling.
      key: Typed PRNG key of the round.

    Returns:
      `[plan.capacity]` int32, client ids; -1 is padding.
    """
    choice_key, count_key, dropout_key = jax.random.split(key, 3)
    if plan.size == plan.num_clients:
        ids = jnp.arange(plan.num_clients, dtype=jnp.int32)
    else:
        if plan.capacity < _SMALL_PART * plan.num_clients:
            ids = _distinct(choice_key, plan.num_clients, plan.capacity)
        else:
            ids = jax.random.choice(choice_key, plan.num_clients, (plan.capacity,), replace=False)
            ids = ids.astype(jnp.int32)
        if plan.sampling == "poisson":
            # A uniform subset of binomial size has the distribution of independent coin flips.
            rate = plan.size / plan.num_clients
            count = jax.random.binomial(count_key, plan.num_clients, rate)
            ids = jnp.where(jnp.arange(plan.capacity) < count, ids, -1)
    if plan.dropout > 0:
        stays = jax.random.bernoulli(dropout_key, 1 - plan.dropout, ids.shape)
        ids = jnp.where(stays, ids, -1)
    return ids


def clients_per_device(capacity: int, num_devices: int, chunk: int) -> int:
    """Returns the number of clients in the shard of each device, a multiple of `chunk`."""
    return -(-capacity // (num_devices * chunk)) * chunk


def assign(
    ids: jax.Array, sizes: jax.Array, *, num_devices: int, chunk: int, prefer_owner: bool = False
) -> jax.Array:
    """Assigns the clients of a cohort to devices with balanced load.

    Clients are sorted by size and every device gets one of each group of `num_devices` neighbours,
    so that clients trained together need nearly the same number of steps. Groups whose sizes differ
    most are assigned first, their largest client to the device with the smallest load so far.

    Args:
      ids: `[cohort]` int32; -1 is padding.
      sizes: `[cohort]` int32, training examples; 0 for padding.
      num_devices: Number of devices.
      chunk: Number of clients that a device trains at once; divides the length of a shard.
      prefer_owner: Among clients of similar size, assign client `i` to device `i % num_devices`, as
        far as all devices keep the same number of clients.

    Returns:
      `[num_devices, shard]` int32, padded with -1.
    """
    shard = clients_per_device(ids.shape[0], num_devices, chunk)
    order = jnp.argsort(jnp.where(ids < 0, -1, sizes), descending=True)
    filled = jnp.full((shard * num_devices,), -1, jnp.int32).at[: ids.shape[0]].set(ids[order])
    if num_devices == 1:
        return filled[None]
    if prefer_owner:
        return filled[jnp.argsort(_prefer_owners(filled, num_devices))].reshape(num_devices, shard)
    neighbours = filled.reshape(shard, num_devices)
    loads = jnp.zeros(filled.shape).at[: ids.shape[0]].set(sizes[order]).reshape(neighbours.shape)

    def assign_row(total, row):
        rank = jnp.argsort(jnp.argsort(total))
        return total + loads[row][rank], neighbours[row][rank]

    rows = jnp.argsort(loads[:, 0] - loads[:, -1], descending=True)
    _, assigned = jax.lax.scan(assign_row, jnp.zeros(num_devices), rows)
    return jnp.zeros_like(neighbours).at[rows].set(assigned).T


def _prefer_owners(ids: jax.Array, num_devices: int) -> jax.Array:
    """Assigns most clients of a cohort sorted by size to the devices that own them.

    Every device takes equally many clients of each group of neighbours: first those that it owns,
    then clients whose owner has no capacity left.

    Args:
      ids: `[num_devices * shard]` int32; -1 is padding, which any device takes.
      num_devices: Number of devices.

    Returns:
      `[num_devices * shard]` int32, a device for each client; every device occurs `shard` times.
    """
    shard = ids.shape[0] // num_devices
    groups = min(_GROUPS, shard)
    starts = -(-np.arange(groups + 1) * shard // groups)
    capacity = np.repeat(np.diff(starts), np.diff(starts) * num_devices)  # for each device
    group = np.repeat(np.arange(groups), np.diff(starts) * num_devices)
    start = num_devices * starts[group]  # of the group's slots, of which each device has `capacity`

    # Alternating order: every other group begins with its smallest clients.
    turn = np.arange(ids.shape[0])
    ends = start + num_devices * capacity
    turn = np.where(group % 2 == 1, start + ends - 1 - turn, turn)
    ids = ids[turn]

    owner = jnp.where(ids < 0, num_devices, ids % num_devices)
    before = _rank(group * (num_devices + 1) + owner)
    stays = (owner < num_devices) & (before < capacity)
    slot = start + owner * capacity + before
    taken = jnp.zeros(ids.shape, bool).at[jnp.where(stays, slot, ids.shape[0])].set(True)
    # In each group there are as many free slots as clients left.
    moving, left = jnp.argsort(2 * group + stays), jnp.argsort(2 * group + taken)
    slot = jnp.where(stays, slot, jnp.zeros_like(left).at[moving].set(left))
    return ((slot - start) // capacity)[turn]


def _rank(values: jax.Array) -> jax.Array:
    """Returns `[n]`, the number of equal values before each of the values `[n]`."""
    order = jnp.argsort(values)
    ordered = values[order]
    rank = jnp.arange(values.shape[0]) - jnp.searchsorted(ordered, ordered)
    return jnp.zeros_like(rank).at[order].set(rank)
