"""Where the clients' private states live: spread over devices, client `i` on device `i % devices`.

Training reads and writes them where they lie. The cohort is dealt so that most clients train where
they live (`sampling.deal`); the states of the others visit (`engine/visits.py`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pfljax.engine import mapping

PyTree = Any


def rows_per_device(num_clients: int, num_devices: int) -> int:
    """Returns how many clients each device keeps, the last of them perhaps without a client."""
    return -(-num_clients // num_devices)


def owned_ids(num_clients: int) -> jax.Array:
    """Returns `[rows]` int32, the ids of this device's clients as stored, -1 past the last."""
    devices = mapping.num_devices()
    rows = jnp.arange(rows_per_device(num_clients, devices), dtype=jnp.int32)
    ids = rows * devices + mapping.device_index()
    return jnp.where(ids < num_clients, ids, -1)


class Hand(NamedTuple):
    """The private states of the clients that a device trains in a round, where they lie.

    Attributes:
      owned: `[rows, ...]`, of the clients that live on this device.
      guests: `[share + 1, ...]`, of the guests, one after another; the last row takes what is to be
        written of others. None where nobody can be a guest.
      places: `[share]` int32, where in `owned` each client of the hand stands; -1 for guests and
        for nobody.
      seats: `[share]` int32, the same for `guests`; the last row for others.
    """

    owned: PyTree
    guests: PyTree | None
    places: jax.Array
    seats: jax.Array

    def read(self, numbers: jax.Array) -> PyTree:
        """Returns `[n, ...]`, the states of the clients `numbers` `[n]` of the hand."""
        places, seats = self.places[numbers], self.seats[numbers]
        own = _rows(self.owned, jnp.maximum(places, 0))
        if self.guests is None:
            return own
        return _choose(places >= 0, own, _rows(self.guests, seats))

    def write(self, numbers: jax.Array, states: PyTree) -> Hand:
        """Puts back states `[n, ...]` of the clients `numbers` `[n]` of the hand."""
        places, seats = self.places[numbers], self.seats[numbers]
        owned = put(self.owned, places, states)
        if self.guests is None:
            return self._replace(owned=owned)
        return self._replace(owned=owned, guests=put(self.guests, seats, states))


def all_owned(states: PyTree, places: jax.Array) -> Hand:
    """Returns the hand of a device that owns all its clients; -1 in `places` is nobody."""
    return Hand(states, None, places, jnp.zeros_like(places))


def _choose(condition: jax.Array, these: PyTree, those: PyTree) -> PyTree:
    """Returns rows `[n, ...]` of the first where `condition` `[n]` says so, else of the second."""

    def one(this, that):
        return jnp.where(condition.reshape(-1, *(1,) * (this.ndim - 1)), this, that)

    return jax.tree.map(one, these, those)


def _rows(states: PyTree, places: jax.Array) -> PyTree:
    """Returns `[n, ...]`, the rows at `places` `[n]`."""
    if places.shape[0] == 1:
        # A slice, so that one row costs one copy.
        return jax.tree.map(
            lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, places[0], 1, axis=0), states
        )
    return jax.tree.map(lambda leaf: leaf[places], states)


def put(states: PyTree, places: jax.Array, rows: PyTree) -> PyTree:
    """Writes rows `[n, ...]` to `places` `[n]`, in place; drops those whose place is negative."""
    if places.shape[0] > 1:
        outside = jax.tree.leaves(states)[0].shape[0] if jax.tree.leaves(states) else 0
        places = jnp.where(places < 0, outside, places)
        return jax.tree.map(lambda leaf, row: leaf.at[places].set(row, mode="drop"), states, rows)
    # A slice cannot be dropped, so what stands in its place is written again.
    place = jnp.maximum(places, 0)
    kept = _choose(places >= 0, rows, _rows(states, place))
    return jax.tree.map(
        lambda leaf, row: jax.lax.dynamic_update_slice_in_dim(leaf, row, place[0], axis=0),
        states,
        kept,
    )
