"""Where the clients' private states live: spread over devices, client `i` on device `i % devices`.

A cohort's rows travel around the ring of devices, and each device fills in, or takes out, the
rows that it owns; which those are, every device knows. None ever holds more than its own clients
and a share of the cohort.
"""

from __future__ import annotations

from typing import Any

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


def fetch(clients: PyTree, hands: jax.Array) -> PyTree:
    """Reads this device's share of the cohort, whichever devices own the rows.

    The rows for a device set out from the next one, and come home when all have filled in theirs.

    Args:
      clients: this device's clients, `[rows, ...]`.
      hands: `[devices, share]` int32, the clients that each device wants; -1 reads anything.

    Returns:
      `[share, ...]`.
    """
    if not jax.tree.leaves(clients):
        return clients
    devices, me = mapping.num_devices(), mapping.device_index()
    mine, place = _owned(hands[(me - 1) % devices])
    rows = jax.tree.map(lambda leaf: leaf[place], clients)

    def hop(number, rows):
        rows = mapping.pass_to_next_device(rows)
        mine, place = _owned(hands[(me - 1 - number) % devices])
        return jax.lax.platform_dependent(
            clients, rows, mine, place, cpu=_copy_one_by_one, default=_choose
        )

    return jax.lax.fori_loop(1, devices, hop, rows)


def _owned(ids: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns which of some clients this device owns, and where; 0 for those it does not."""
    devices = mapping.num_devices()
    mine = (ids >= 0) & (ids % devices == mapping.device_index())
    return mine, jnp.where(mine, ids // devices, 0)


def _choose(clients: PyTree, rows: PyTree, mine: jax.Array, place: jax.Array) -> PyTree:
    """Returns `rows` `[share, ...]` with the clients at `place` `[share]` where `mine` says so."""

    def one(stored, row):
        shape = (-1,) + (1,) * (row.ndim - 1)
        return jnp.where(mine.reshape(shape), stored[place], row)

    return jax.tree.map(one, clients, rows)


def _copy_one_by_one(clients: PyTree, rows: PyTree, mine: jax.Array, place: jax.Array) -> PyTree:
    """`_choose` as a loop over those that are mine, which touches no other row.

    A CPU copies whole rows faster than it picks numbers.
    """
    order = jnp.argsort(~mine)

    def copy(index, rows):
        row = order[index]
        return jax.tree.map(
            lambda stored, kept: kept.at[row].set(stored[place[row]]), clients, rows
        )

    return jax.lax.fori_loop(0, jnp.sum(mine), copy, rows)


def store(clients: PyTree, hands: jax.Array, rows: PyTree) -> PyTree:
    """Writes rows back to the devices that own them; a row whose id is -1 is dropped.

    Args:
      clients: this device's clients, `[rows, ...]`.
      hands: `[devices, share]` int32, the clients whose rows each device holds.
      rows: `[share, ...]`, this device's.

    Returns:
      `clients` with the rows in place.
    """
    if not jax.tree.leaves(clients):
        return clients
    devices, me = mapping.num_devices(), mapping.device_index()
    outside = jax.tree.leaves(clients)[0].shape[0]

    def put(clients, ids, rows):
        mine, place = _owned(ids)
        place = jnp.where(mine, place, outside)
        return jax.tree.map(
            lambda stored, row: stored.at[place].set(row, mode="drop"), clients, rows
        )

    def hop(number, carry):
        clients, rows = carry
        rows = mapping.pass_to_next_device(rows)
        return put(clients, hands[(me - number) % devices], rows), rows

    carry = put(clients, hands[me], rows), rows
    return jax.lax.fori_loop(1, devices, hop, carry)[0]
