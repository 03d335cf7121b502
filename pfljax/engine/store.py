"""Where the clients' private states live: spread over devices, client `i` on device `i % devices`.

A cohort's rows travel around the ring of devices, and each device fills in, or takes out, the
rows that it owns. No device ever holds more than its own clients and its share of the cohort.
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


def fetch(clients: PyTree, ids: jax.Array) -> PyTree:
    """Reads rows, whichever device owns them.

    Args:
      clients: this device's clients, `[rows, ...]`.
      ids: `[share]` int32, the clients this device wants; -1 reads anything.

    Returns:
      `[share, ...]`.
    """
    if not jax.tree.leaves(clients):
        return clients
    devices = mapping.num_devices()

    def fill(wanted, rows):
        mine = (wanted >= 0) & (wanted % devices == mapping.device_index())
        place = jnp.where(mine, wanted // devices, 0)

        def choose(stored, row):
            shape = (-1,) + (1,) * (row.ndim - 1)
            return jnp.where(mine.reshape(shape), stored[place], row)

        return jax.tree.map(choose, clients, rows)

    anything = jnp.zeros(ids.shape, jnp.int32)
    empty = jax.tree.map(lambda leaf: leaf[anything], clients)
    if devices == 1:
        return fill(ids, empty)

    def hop(_, carry):
        wanted, rows = carry
        return mapping.pass_to_next_device((wanted, fill(wanted, rows)))

    # After as many hops as there are devices, the rows are home again.
    _, rows = jax.lax.fori_loop(0, devices, hop, (ids, empty))
    return rows


def store(clients: PyTree, ids: jax.Array, rows: PyTree) -> PyTree:
    """Writes rows back to the devices that own them; a row whose id is -1 is dropped.

    Args:
      clients: this device's clients, `[rows, ...]`.
      ids: `[share]` int32, which clients the rows belong to.
      rows: `[share, ...]`.

    Returns:
      `clients` with the rows in place.
    """
    if not jax.tree.leaves(clients):
        return clients
    devices = mapping.num_devices()
    outside = jax.tree.leaves(clients)[0].shape[0]

    def put(clients, ids, rows):
        mine = (ids >= 0) & (ids % devices == mapping.device_index())
        place = jnp.where(mine, ids // devices, outside)
        return jax.tree.map(
            lambda stored, row: stored.at[place].set(row, mode="drop"), clients, rows
        )

    if devices == 1:
        return put(clients, ids, rows)

    def hop(_, carry):
        clients, ids, rows = carry
        return put(clients, ids, rows), *mapping.pass_to_next_device((ids, rows))

    clients, _, _ = jax.lax.fori_loop(0, devices, hop, (clients, ids, rows))
    return clients
