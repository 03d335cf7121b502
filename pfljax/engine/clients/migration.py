"""Migration of client states: gathered where clients train, scattered back to their owners.

States are exchanged in buckets of fixed size by all-to-all messages: in each, every device sends
some states to every other device. All devices compute the number of buckets from the assignment.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pfljax.engine import mapping
from pfljax.engine.clients import on_device

PyTree = Any

# Size of a bucket relative to a uniform distribution of a shard over pairs of devices: small, so
# that buckets are filled, as few clients are remote.
_BUCKET = 1 / 16


class _Transfers(NamedTuple):
    """The states that one device sends and receives.

    Attributes:
      sent: `[devices, shard]` int32, for each other device the rows of this device's states that it
        trains, followed by -1.
      received: `[devices, shard]` int32, for each other device the slots in this device's buffer
        for the states that it sends, in the same order, followed by -1.
      num_buckets: `[]` int32, the number of buckets until all states have arrived.
    """

    sent: jax.Array
    received: jax.Array
    num_buckets: jax.Array


def _bucket_size(num_devices: int, shard: int) -> int:
    """Returns the number of states in a bucket for each pair of devices."""
    return max(1, int(shard * _BUCKET / num_devices))


def _owners(assignment: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the devices `[devices, 1]` and the owner `[devices, shard]` of each client."""
    devices = assignment.shape[0]
    each = jnp.arange(devices, dtype=jnp.int32)[:, None]
    return each, jnp.where(assignment < 0, each, assignment % devices)  # padding is never remote


def num_buckets(assignment: jax.Array) -> jax.Array:
    """Returns `[]` int32, the number of buckets that `assignment` `[devices, shard]` needs."""
    each, owner = _owners(assignment)
    counts = jnp.zeros((assignment.shape[0],) * 2, jnp.int32).at[each, owner].add(1)
    largest = jnp.max(jnp.where(each == each.T, 0, counts))
    return -(-largest // _bucket_size(*assignment.shape))


def _transfers(assignment: jax.Array, slots: jax.Array) -> _Transfers:
    """Returns the transfers of this device, whose clients have `slots` `[shard]` in its buffer."""
    devices, me = mapping.num_devices(), mapping.device_index()
    each, owner = _owners(assignment)
    size = _bucket_size(*assignment.shape)

    def first(wanted, values):
        """Returns `[devices, shard]`, the selected values of each row, followed by -1."""
        order = jnp.argsort(~wanted, axis=1)
        found = jnp.take_along_axis(jnp.where(wanted, values, -1), order, axis=1)
        return jnp.pad(found, ((0, 0), (0, -assignment.shape[1] % size)), constant_values=-1)

    sent = first((owner == me) & (each != me), assignment // devices)
    wanted = (owner[me] == each) & (each != me)
    received = first(wanted, jnp.broadcast_to(slots, assignment.shape))
    return _Transfers(sent, received, num_buckets(assignment))


def _read(states: PyTree, rows: jax.Array) -> PyTree:
    """Returns `[n, ...]`, the states at `rows` `[n]`: a CPU copies rows faster than it gathers."""
    return jax.lax.map(lambda row: jax.tree.map(lambda leaf: leaf[row], states), rows)


def _exchange_bucket(
    source: PyTree, target: PyTree, sent: jax.Array, received: jax.Array, index: jax.Array
) -> PyTree:
    """Exchanges one bucket: rows of `source` become rows of `target` on other devices.

    Args:
      source: The states on this device to send.
      target: The states on this device to replace.
      sent: `[devices, shard]` int32, the rows of `source` for each device; -1 for none.
      received: `[devices, shard]` int32, the rows of `target` for those of each device; -1 for
        none.
      index: `[]` int32, the index of the bucket.

    Returns:
      The target with the received states.
    """
    size = _bucket_size(sent.shape[0], sent.shape[1])
    sent, received = (
        jax.lax.dynamic_slice_in_dim(each, index * size, size, axis=1) for each in (sent, received)
    )
    states = _read(source, jnp.maximum(sent, 0).reshape(-1))
    states = jax.tree.map(lambda leaf: leaf.reshape(*sent.shape, *leaf.shape[1:]), states)
    states = mapping.exchange_over_devices(states)
    states = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), states)

    def unpack(position, target):
        one = jax.tree.map(lambda leaf: leaf[position][None], states)
        return on_device.write_states(target, received.reshape(-1)[position][None], one)

    return jax.lax.fori_loop(0, received.size, unpack, target)


def receive_buffer(clients: PyTree, shard: int) -> PyTree | None:
    """Returns a buffer `[shard + 1, ...]` for states of remote clients; None on a single device.

    Rounds reuse it, because newly allocated memory is slow at its first write.

    Args:
      clients: `[rows, ...]`, the states that this device owns.
      shard: Number of clients that a device trains in a round.
    """
    if mapping.num_devices() == 1 or not jax.tree.leaves(clients):
        return None

    def one(leaf):
        shape = (shard + 1, *leaf.shape[1:])
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jnp.broadcast_to(leaf[:1], shape)
        return jnp.zeros(shape, leaf.dtype)

    return jax.tree.map(one, clients)


def gather_states(
    clients: PyTree, buffer: PyTree | None, assignment: jax.Array, *, after: PyTree = ()
) -> on_device.DeviceCohort:
    """Gathers the states of this device's shard of the cohort.

    Args:
      clients: `[rows, ...]`, the states that this device owns.
      buffer: A buffer of `receive_buffer`, with any content.
      assignment: `[devices, shard]` int32, the clients that each device trains; -1 is padding.
      after: The results of all collectives that are to run before; see `mapping.after`.
    """
    devices, me = mapping.num_devices(), mapping.device_index()
    mine, shard = assignment[me], assignment.shape[1]
    is_owned = (mine >= 0) & (mine % devices == me)
    rows = jnp.where(is_owned, mine // devices, -1)
    if buffer is None:
        return on_device.all_owned(clients, rows)
    is_remote = (mine >= 0) & ~is_owned
    slots = jnp.where(is_remote, jnp.cumsum(is_remote, dtype=jnp.int32) - 1, shard)
    sent, received, count = _transfers(assignment, slots)
    remote = jax.lax.fori_loop(
        0,
        mapping.after(count, after),
        lambda index, buffer: _exchange_bucket(clients, buffer, sent, received, index),
        buffer,
    )
    return on_device.DeviceCohort(clients, remote, rows, slots)


def scatter_states(
    cohort: on_device.DeviceCohort, assignment: jax.Array, *, after: PyTree = ()
) -> PyTree:
    """Returns the states `[rows, ...]` that this device owns, including those trained elsewhere.

    Args:
      cohort: The states of this device's shard of the cohort, and those that it owns.
      assignment: As for `gather_states`.
      after: As for `gather_states`.
    """
    if cohort.remote is None:
        return cohort.owned
    sent, received, count = _transfers(assignment, cohort.slots)
    return jax.lax.fori_loop(
        0,
        mapping.after(count, after),
        lambda index, owned: _exchange_bucket(cohort.remote, owned, received, sent, index),
        cohort.owned,
    )
