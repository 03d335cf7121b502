"""Clients that train on another device than the one where they live, and go home afterwards.

Their states travel in parcels: in each, every device sends every other some rows, straight to where
they are needed. How many parcels that takes, all devices know from the hands.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pfljax.engine import mapping, store

PyTree = Any

# A parcel has room for this part of an even share of a hand for each pair of devices: small, so
# that it is filled, as few clients are guests.
_PARCEL = 1 / 16


class _Visits(NamedTuple):
    """Who is whose guest, as one device sees it.

    Attributes:
      lent: `[devices, share]` int32, for each other device the rows of this one that it wants, one
        after another, then -1.
      received: `[devices, share]` int32, for each other device the seats here of its rows, in the
        same order, then -1.
      parcels: `[]` int32, in how many parcels all devices get what they want.
    """

    lent: jax.Array
    received: jax.Array
    parcels: jax.Array


def _parcel_size(num_devices: int, share: int) -> int:
    """Returns how many rows of each device for each other one a parcel has room for."""
    return max(1, int(share * _PARCEL / num_devices))


def _owners(hands: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the devices `[devices, 1]`, and those that own the clients `[devices, share]`."""
    devices = hands.shape[0]
    each = jnp.arange(devices, dtype=jnp.int32)[:, None]
    return each, jnp.where(hands < 0, each, hands % devices)  # nobody is at home everywhere


def num_parcels(hands: jax.Array) -> jax.Array:
    """Returns `[]` int32, in how many parcels all guests of `hands` `[devices, share]` travel."""
    each, owner = _owners(hands)
    counts = jnp.zeros((hands.shape[0],) * 2, jnp.int32).at[each, owner].add(1)
    largest = jnp.max(jnp.where(each == each.T, 0, counts))
    return -(-largest // _parcel_size(*hands.shape))


def _visits(hands: jax.Array, seats: jax.Array) -> _Visits:
    """Returns who is whose guest, from the ids of all hands and this device's seats."""
    devices, me = mapping.num_devices(), mapping.device_index()
    each, owner = _owners(hands)
    size = _parcel_size(*hands.shape)

    def first(wanted, values):
        """`[devices, share]`: of each row the values that are wanted, then -1."""
        order = jnp.argsort(~wanted, axis=1)
        found = jnp.take_along_axis(jnp.where(wanted, values, -1), order, axis=1)
        return jnp.pad(found, ((0, 0), (0, -hands.shape[1] % size)), constant_values=-1)

    lent = first((owner == me) & (each != me), hands // devices)
    wanted = (owner[me] == each) & (each != me)
    received = first(wanted, jnp.broadcast_to(seats, hands.shape))
    return _Visits(lent, received, num_parcels(hands))


def _one_by_one(states: PyTree, places: jax.Array) -> PyTree:
    """Returns `[n, ...]`, the rows at `places` `[n]`: a CPU copies rows faster than it gathers."""
    return jax.lax.map(lambda place: jax.tree.map(lambda leaf: leaf[place], states), places)


def _post(source: PyTree, target: PyTree, sent: jax.Array, put: jax.Array, number) -> PyTree:
    """Sends one parcel: rows of `source` at `sent` become those of `target` at `put`.

    Args:
      source: rows of this device.
      target: rows of this device.
      sent: `[devices, share]` int32, which of the source go to each device; -1 for none.
      put: `[devices, share]` int32, where those of each device go in the target; -1 for none.
      number: `[]` int32, of the parcel.

    Returns:
      The target with the rows in place.
    """
    size = _parcel_size(sent.shape[0], sent.shape[1])
    sent, put = (
        jax.lax.dynamic_slice_in_dim(each, number * size, size, axis=1) for each in (sent, put)
    )
    rows = _one_by_one(source, jnp.maximum(sent, 0).reshape(-1))
    rows = jax.tree.map(lambda leaf: leaf.reshape(*sent.shape, *leaf.shape[1:]), rows)
    rows = mapping.exchange_over_devices(rows)
    rows = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), rows)

    def unpack(index, target):
        row = jax.tree.map(lambda leaf: leaf[index][None], rows)
        return store.put(target, put.reshape(-1)[index][None], row)

    return jax.lax.fori_loop(0, put.size, unpack, target)


def room(clients: PyTree, share: int) -> PyTree | None:
    """Returns where guests will stand, `[share + 1, ...]`; None where nobody can be a guest.

    Rounds hand it on: memory that the system gives out anew is slow to write for the first time.

    Args:
      clients: this device's clients, `[rows, ...]`.
      share: the clients that a device trains in a round.
    """
    if mapping.num_devices() == 1 or not jax.tree.leaves(clients):
        return None

    def one(leaf):
        shape = (share + 1, *leaf.shape[1:])
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jnp.broadcast_to(leaf[:1], shape)
        return jnp.zeros(shape, leaf.dtype)

    return jax.tree.map(one, clients)


def lend(clients: PyTree, guests: PyTree | None, hands: jax.Array) -> store.Hand:
    """Brings together what this device needs of its share of the cohort.

    Args:
      clients: this device's clients, `[rows, ...]`.
      guests: the room for them, whatever it holds.
      hands: `[devices, share]` int32, the clients that each device trains; -1 is nobody.
    """
    devices, me = mapping.num_devices(), mapping.device_index()
    mine, share = hands[me], hands.shape[1]
    at_home = (mine >= 0) & (mine % devices == me)
    places = jnp.where(at_home, mine // devices, -1)
    if guests is None:
        return store.all_owned(clients, places)
    visiting = (mine >= 0) & ~at_home
    seats = jnp.where(visiting, jnp.cumsum(visiting, dtype=jnp.int32) - 1, share)
    lent, received, parcels = _visits(hands, seats)
    guests = jax.lax.fori_loop(
        0,
        parcels,
        lambda number, guests: _post(clients, guests, lent, received, number),
        guests,
    )
    return store.Hand(clients, guests, places, seats)


def give_back(hand: store.Hand, hands: jax.Array) -> PyTree:
    """Returns this device's clients, `[rows, ...]`, the states of guests elsewhere put back."""
    if hand.guests is None:
        return hand.owned
    lent, received, parcels = _visits(hands, hand.seats)
    return jax.lax.fori_loop(
        0,
        parcels,
        lambda number, owned: _post(hand.guests, owned, received, lent, number),
        hand.owned,
    )
