"""Populations with states and examples on the host: a million clients and more.

The devices receive the states and examples of one cohort at a time, and need no more memory for a
million clients than for a thousand; `engine/clients/host_programs.py` runs rounds and evaluations.
In the state of such a run, `clients` is `[1, num_clients]`, the row indices of
`engine/clients/mmap_rows.py`. Each of several processes stores its clients
(`engine/clients/by_process.py`) in a separate file.
"""

from __future__ import annotations

import pathlib
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from pfljax.core import tree
from pfljax.core.algorithm import Algorithm
from pfljax.core.types import FederatedState, Population
from pfljax.engine import init, mapping, sampling
from pfljax.engine.clients import by_process, mmap_rows, on_device, store
from pfljax.engine.clients.host_examples import HostExamples
from pfljax.engine.examples import Examples

PyTree = Any


class HostShard(NamedTuple):
    """The data that the host sends to the devices for a round or a part of an evaluation.

    Attributes:
      ids: `[devices, shard]` int32, replicated; -1 is padding.
      sizes: `[devices, shard]` int32, numbers of training examples, replicated.
      fresh: `[devices here, shard]` bool, whether a client never took part; sharded over the
        devices of this process.
      clients: `[devices here, shard, ...]`, the private states, keys as their data; sharded.
      examples: `[devices here, ...]`, the examples; sharded.
    """

    ids: np.ndarray
    sizes: np.ndarray
    fresh: jax.Array
    clients: PyTree
    examples: Examples


SHARD_AXES = HostShard(ids=None, sizes=None, fresh=0, clients=0, examples=0)


class HostStates:
    """Private states in a file on the host and examples in its memory or files.

    Args:
      examples: The examples of all clients.
      options: The settings for which programs are compiled.
      eval_ids: `[n]`, the evaluated clients; None for all.
      snapshots: Number of snapshots to keep, see `RowFile`.

    Attributes:
      num_processes: Number of processes that own clients.
      devices_here: Number of devices of each process.
      capacity: The maximum number of clients of a cohort that a process can train.
      shard: Number of clients that each device trains.
      client: The shapes and dtypes of one client's private state; set with the first program.
      initial_server: The server's state of round 0, from which private states are initialized if
        `options.join` is 'initial'; otherwise, and before the first state, `()`.
    """

    keeps_snapshots = True

    def __init__(
        self,
        examples: HostExamples,
        options: store.Options,
        *,
        eval_ids: np.ndarray | None = None,
        snapshots: int = 3,
    ):
        self.examples, self.options, self.eval_ids = examples, options, eval_ids
        self._snapshots = snapshots
        mesh = mapping.local_mesh(options.devices)
        self._spread = mapping.spread_sharding(mesh)
        first = list(options.devices).index(mesh.devices[0])
        self._here = slice(first, first + mesh.size)
        self.devices_here = mesh.size
        self.num_processes = len(options.devices) // mesh.size
        self.capacity = by_process.capacity(options.plan, self.num_processes)
        self.shard = sampling.clients_per_device(
            self.capacity, mesh.size, options.clients_per_chunk
        )
        of_many = f"-{jax.process_index()}-of-{self.num_processes}"
        self._file_name = f"clients{of_many if self.num_processes > 1 else ''}.rows"
        self.client: PyTree = ()
        self.initial_server: PyTree = ()
        self._file: mmap_rows.RowFile | None = None

    def population(self) -> Population:
        """Returns shapes and dtypes of the profiles of all clients."""
        plan, counts = self.options.plan, None
        if self.examples.class_counts is not None:
            shape = (plan.num_clients, self.examples.num_classes)
            counts = jax.ShapeDtypeStruct(shape, jnp.int32)
        return Population(jax.ShapeDtypeStruct((plan.num_clients,), jnp.int32), counts)

    def example_shapes(self) -> tuple[Population, Examples]:
        """See `ClientStore.example_shapes`."""
        capacity = max(1, self.examples.max_train_size)
        shard = self.examples.shard(np.zeros(1, np.int32), ("train",), capacity)
        return self.population(), jax.tree.map(jnp.asarray, shard)

    def open(self, directory: pathlib.Path, *, overwrite: bool) -> None:
        """Stores private states in a file there from now on; before, in a temporary one."""
        self._file = mmap_rows.RowFile(
            self.damaged_file(directory),
            jax.eval_shape(self.encode, self.client),
            snapshots=self._snapshots,
            overwrite=overwrite,
        )

    @property
    def file(self) -> mmap_rows.RowFile:
        """The file of the private states."""
        if self._file is None:
            folder = tempfile.mkdtemp(prefix="pfljax-")
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            self.open(pathlib.Path(folder), overwrite=True)
        return self._file

    def snapshot(self, state: FederatedState) -> FederatedState:
        """Returns the state to put into a checkpoint; its rows are flushed and protected.

        Its `clients` is a `mmap_rows.Snapshot` whose arrays are `[1, num_clients]`.
        """
        kept = self.file.snapshot(state.clients[0])
        return state._replace(clients=jax.tree.map(lambda leaf: leaf[None], kept))

    def like_snapshot(self, state: FederatedState) -> FederatedState:
        """Returns a state with the structure of `snapshot`, without reading any row."""
        return state._replace(clients=mmap_rows.Snapshot(state.clients, state.clients))

    def damaged(self, kept: FederatedState) -> np.ndarray:
        """Returns the clients whose rows differ from a `snapshot`."""
        return self.file.damaged(jax.tree.map(lambda leaf: leaf[0], kept.clients))

    def adopt(self, kept: Sequence[FederatedState]) -> FederatedState:
        """Continues from the last of these snapshots; rows of no snapshot are released.

        Args:
          kept: All snapshots of an earlier run that may still be resumed from.

        Returns:
          The state of the last one, as the round program takes it.
        """
        self.file.adopt([jax.tree.map(lambda leaf: leaf[0], one.clients) for one in kept])
        return kept[-1]._replace(clients=kept[-1].clients.table.copy())

    def damaged_file(self, directory: pathlib.Path) -> pathlib.Path:
        """Returns the file of the private states of this process."""
        return directory / self._file_name

    def to_host(self, state: FederatedState, num_clients: int) -> FederatedState:
        """See `ClientStore.to_host`; every process has the rows of its own clients only."""

        def of_all(leaf):
            if jax.process_count() > 1:
                leaf = multihost_utils.process_allgather(leaf, tiled=True)
            return np.max(leaf, axis=0)

        return on_device.shared_to_host(state)._replace(clients=jax.tree.map(of_all, state.clients))

    def to_devices(
        self, host: FederatedState, like: FederatedState, devices: Sequence[jax.Device]
    ) -> FederatedState:
        """See `ClientStore.to_devices`; the rows stay on the host."""
        clients = jax.tree.map(lambda leaf: by_process.kept_here(leaf)[None], host.clients)
        return on_device.shared_to_devices(host, like, devices)._replace(clients=clients)

    def encode(self, client: PyTree) -> PyTree:
        """Returns a private state in stored form: keys as their data."""
        return jax.tree.map(tree.key_data, client)

    def decode(self, stored: PyTree) -> PyTree:
        """Returns the inverse of `encode`, for any number of clients."""
        return jax.tree.map(tree.wrap_key_data, stored, self.client)

    def rows_of(
        self, algorithm: Algorithm, shard: HostShard, state: FederatedState, initial: PyTree
    ) -> tuple[PyTree, jax.Array]:
        """Returns this device's private states, initialized for new clients, and their rows."""
        server = initial if self.options.join == "initial" else state.server
        mine = shard.ids[mapping.device_index()]
        rows = jnp.where(mine < 0, -1, jnp.arange(mine.shape[0], dtype=jnp.int32))
        clients = self.decode(shard.clients)
        if not jax.tree.leaves(clients):
            return clients, rows

        def one(client):
            client_id, row, fresh, kept = client
            profile = shard.examples.profile(row)._replace(id=client_id)
            return tree.where(
                fresh, init.init_client(algorithm, server, profile, state.key), kept
            ), ()

        clients, _ = mapping.map_and_sum(
            one,
            (mine, rows, shard.fresh, clients),
            clients_per_chunk=self.options.clients_per_chunk,
        )
        return clients, rows

    def examples_for(self, ids: np.ndarray, splits: Sequence[str], capacity: int) -> Examples:
        """Copies the examples of `ids` `[devices, shard]` to the devices of this process."""
        shards = [self.examples.shard(own, splits, capacity) for own in ids[self._here]]
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *shards)
        return jax.device_put(stacked, self._spread)

    def clients_for(self, table: np.ndarray, ids: np.ndarray) -> tuple[jax.Array, PyTree]:
        """Copies the private states of `ids` to the devices here; marks the fresh ones."""
        ids = ids[self._here]
        found = self.file.read(table, ids.reshape(-1))
        clients = jax.tree.map(lambda leaf: leaf.reshape(*ids.shape, *leaf.shape[1:]), found)
        fresh = table[np.maximum(ids, 0)] < 0
        return jax.device_put((fresh, clients), self._spread)

    def put_back(self, table: np.ndarray, ids: np.ndarray, clients: PyTree) -> None:
        """Stores the states `[devices here, shard, ...]` of `ids` after training."""
        rows = jax.tree.map(lambda leaf: np.asarray(leaf).reshape(-1, *leaf.shape[2:]), clients)
        self.file.write(table, ids[self._here].reshape(-1), rows)

    def fetch(
        self, table: np.ndarray, ids: np.ndarray, splits: Sequence[str], capacity: int
    ) -> HostShard:
        """Returns the data that a program needs for `ids` `[devices, shard]`."""
        examples = self.examples_for(ids, splits, capacity)
        return HostShard(ids, self.sizes_of(ids), *self.clients_for(table, ids), examples)

    def sizes_of(self, ids: np.ndarray) -> np.ndarray:
        """Returns the number of training examples of clients, 0 for padding."""
        return np.where(ids < 0, 0, self.examples.sizes["train"][np.maximum(ids, 0)])
