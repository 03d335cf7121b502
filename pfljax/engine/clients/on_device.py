"""Private states of clients on devices: client `i` is owned by device `i % devices`.

Training reads and writes the states in place. Cohorts are assigned so that most clients train on
the device that owns them (`sampling.assign`); the states of the others are copied there and back
(`engine/clients/migration.py`).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from pfljax.core import tree
from pfljax.core.types import FederatedState
from pfljax.engine import mapping

PyTree = Any


def rows_per_device(num_clients: int, num_devices: int) -> int:
    """Returns the number of clients that each device owns, padding included."""
    return -(-num_clients // num_devices)


def owned_ids(num_clients: int) -> jax.Array:
    """Returns `[rows]` int32, the ids of this device's clients in stored order; -1 is padding."""
    devices = mapping.num_devices()
    rows = jnp.arange(rows_per_device(num_clients, devices), dtype=jnp.int32)
    ids = rows * devices + mapping.device_index()
    return jnp.where(ids < num_clients, ids, -1)


def split_by_owner(ids: np.ndarray, num_devices: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits client ids by the device that owns them.

    Args:
      ids: `[n]`, different client ids.
      num_devices: Number of devices.

    Returns:
      `[num_devices, rows]` int32, the ids that each device owns, padded with -1; and `[n]`, the
      positions of the ids in that table, row after row.

    Example:
      >>> split_by_owner(np.array([4, 1, 2]), 2)
      (array([[ 4,  2],
             [ 1, -1]], dtype=int32), array([0, 2, 1]))
    """
    owners = np.asarray(ids) % num_devices
    table = np.full((num_devices, max(1, np.bincount(owners).max())), -1, np.int32)
    positions = np.zeros(len(ids), int)
    for device in range(num_devices):
        chosen = np.flatnonzero(owners == device)
        table[device, : len(chosen)] = ids[chosen]
        positions[chosen] = device * table.shape[1] + np.arange(len(chosen))
    return table, positions


class DeviceCohort(NamedTuple):
    """The private states of the clients that a device trains in a round.

    Attributes:
      owned: `[rows, ...]`, the states of all clients that this device owns.
      remote: `[shard + 1, ...]`, copies of the states of clients that other devices own; the last
        row absorbs writes for the rest of the shard. None where no client can be remote.
      rows: `[shard]` int32, the row in `owned` of each client of the shard; -1 for remote clients
        and padding.
      slots: `[shard]` int32, the row in `remote` of each client of the shard; the last row for
        owned clients and padding.
    """

    owned: PyTree
    remote: PyTree | None
    rows: jax.Array
    slots: jax.Array

    def read(self, positions: jax.Array) -> PyTree:
        """Returns `[n, ...]`, the states of the clients at `positions` `[n]` of the shard."""
        rows, slots = self.rows[positions], self.slots[positions]
        owned = _read(self.owned, jnp.maximum(rows, 0))
        if self.remote is None:
            return owned
        return _choose(rows >= 0, owned, _read(self.remote, slots))

    def write(self, positions: jax.Array, states: PyTree) -> DeviceCohort:
        """Stores the states `[n, ...]` of the clients at `positions` `[n]` of the shard."""
        rows, slots = self.rows[positions], self.slots[positions]
        owned = write_states(self.owned, rows, states)
        if self.remote is None:
            return self._replace(owned=owned)
        return self._replace(owned=owned, remote=write_states(self.remote, slots, states))


def all_owned(states: PyTree, rows: jax.Array) -> DeviceCohort:
    """Returns the cohort of a device that owns all its clients; -1 in `rows` is padding."""
    return DeviceCohort(states, None, rows, jnp.zeros_like(rows))


def _choose(condition: jax.Array, these: PyTree, those: PyTree) -> PyTree:
    """Returns rows `[n, ...]`: of the first tree where `condition` `[n]` holds, else the second."""

    def one(this, that):
        return jnp.where(condition.reshape(-1, *(1,) * (this.ndim - 1)), this, that)

    return jax.tree.map(one, these, those)


def _read(states: PyTree, rows: jax.Array) -> PyTree:
    """Returns `[n, ...]`, the states at `rows` `[n]`."""
    if rows.shape[0] == 1:
        # A slice, so that one row costs one copy.
        return jax.tree.map(
            lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, rows[0], 1, axis=0), states
        )
    return jax.tree.map(lambda leaf: leaf[rows], states)


def write_states(states: PyTree, rows: jax.Array, new: PyTree) -> PyTree:
    """Writes states in place.

    Args:
      states: `[rows, ...]`.
      rows: `[n]` int32; states for negative rows are dropped.
      new: `[n, ...]`.

    Returns:
      `states` with `new` at `rows`.
    """
    if rows.shape[0] > 1:
        outside = jax.tree.leaves(states)[0].shape[0] if jax.tree.leaves(states) else 0
        rows = jnp.where(rows < 0, outside, rows)
        return jax.tree.map(lambda leaf, some: leaf.at[rows].set(some, mode="drop"), states, new)
    # A slice cannot be dropped, so the old state is written again.
    row = jnp.maximum(rows, 0)
    kept = _choose(rows >= 0, new, _read(states, row))
    return jax.tree.map(
        lambda leaf, one: jax.lax.dynamic_update_slice_in_dim(leaf, one, row[0], axis=0),
        states,
        kept,
    )


def to_host(state: FederatedState, num_clients: int, num_groups: int = 1) -> FederatedState:
    """Returns the state as NumPy arrays, clients `[num_clients, ...]`, keys as their data.

    Args:
      state: The state of a run, clients `[devices of this process, rows, ...]`.
      num_clients: Number of clients, including held-out ones.
      num_groups: Number of groups of `engine.groups`, where clients are a tuple with an item for
        each group; 1 without groups.
    """

    def by_id(count, leaf):
        leaf = tree.key_data(leaf)
        if jax.process_count() > 1:
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        # Client i is row i // devices of device i % devices.
        rows = np.asarray(leaf).swapaxes(0, 1)
        return rows.reshape(-1, *rows.shape[2:])[:count]

    def rows_of(clients, number):
        count = len(range(number, num_clients, num_groups))
        return jax.tree.map(functools.partial(by_id, count), clients)

    if num_groups == 1:
        clients = rows_of(state.clients, 0)
    else:
        clients = tuple(rows_of(own, number) for number, own in enumerate(state.clients))
    return shared_to_host(state)._replace(clients=clients)


def shared_to_host(state: FederatedState) -> FederatedState:
    """Returns all but the clients of a state as NumPy arrays, keys as their data."""
    shared = state._replace(clients=())
    return jax.tree.map(lambda leaf: np.asarray(tree.key_data(leaf)), shared)


def to_devices(
    host: FederatedState, like: FederatedState, devices: Sequence[jax.Device]
) -> FederatedState:
    """Returns the state on the devices, the inverse of `to_host`, for any number of devices.

    Args:
      host: The result of `to_host`, possibly on another machine.
      like: A state of this run, for its dtypes and keys.
      devices: The devices of the run.
    """
    mesh = mapping.local_mesh(devices)
    first = list(devices).index(mesh.devices[0])

    def spread(leaf, like):
        rows = rows_per_device(leaf.shape[0], len(devices))
        padded = np.zeros((rows * len(devices), *leaf.shape[1:]), leaf.dtype)
        padded[: leaf.shape[0]] = leaf
        stacked = padded.reshape(rows, len(devices), *leaf.shape[1:]).swapaxes(0, 1)
        own = stacked[first : first + mesh.size]
        return tree.wrap_key_data(jax.device_put(own, mapping.spread_sharding(mesh)), like)

    shared = shared_to_devices(host, like, devices)
    return shared._replace(clients=jax.tree.map(spread, host.clients, like.clients))


def shared_to_devices(
    host: FederatedState, like: FederatedState, devices: Sequence[jax.Device]
) -> FederatedState:
    """Returns the inverse of `shared_to_host`."""
    return jax.tree.map(
        lambda leaf, like: tree.wrap_key_data(mapping.replicate(leaf, devices), like),
        host._replace(clients=()),
        like._replace(clients=()),
    )
