"""Checkpoints of the whole state, in a layout that knows no devices.

On disk a client's state is row `i` of `[num_clients, ...]`, whatever the number of devices and
processes, so that a run can go on elsewhere. Saving is asynchronous: the state is copied to the
host, and written while the next rounds run.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from pfljax.core import FederatedState, PyTree
from pfljax.engine import mapping, processes, store
from pfljax.errors import UserError


def _is_key(leaf) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _key_data(leaf: jax.Array) -> jax.Array:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def to_host(state: FederatedState, num_clients: int) -> FederatedState:
    """Returns the state as NumPy arrays, clients `[num_clients, ...]`, keys as their data.

    Args:
      state: as the round program returns it, clients `[devices of this process, rows, ...]`.
      num_clients: seen and unseen.
    """

    one_process = jax.process_count() == 1

    def by_id(leaf):
        if isinstance(leaf, np.ndarray):
            # A table of a population on the hosts: each process knows its own clients.
            tables = leaf if one_process else multihost_utils.process_allgather(leaf, tiled=True)
            return np.max(tables, axis=0)
        leaf = _key_data(leaf)
        if not one_process:
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        # Client i is row i // devices of device i % devices.
        rows = np.asarray(leaf).swapaxes(0, 1)
        return rows.reshape(-1, *rows.shape[2:])[:num_clients]

    host = jax.tree.map(lambda leaf: np.asarray(_key_data(leaf)), state._replace(clients=()))
    return host._replace(clients=jax.tree.map(by_id, state.clients))


def to_devices(
    host: FederatedState, like: FederatedState, devices: Sequence[jax.Device]
) -> FederatedState:
    """The inverse of `to_host`, on any number of devices.

    Args:
      host: what `to_host` returned, there or elsewhere.
      like: a state of this run, for its dtypes and keys; clients that it holds as NumPy arrays
        stay on the host.
      devices: that the run uses.
    """
    mesh = mapping.local_mesh(devices)
    first = list(devices).index(mesh.devices[0])

    def wrapped(leaf, like):
        return jax.random.wrap_key_data(leaf) if _is_key(like) else leaf

    def spread(leaf, like):
        if isinstance(like, np.ndarray):
            return processes.kept_here(leaf)[None]
        rows = store.rows_per_device(leaf.shape[0], len(devices))
        padded = np.zeros((rows * len(devices), *leaf.shape[1:]), leaf.dtype)
        padded[: leaf.shape[0]] = leaf
        stacked = padded.reshape(rows, len(devices), *leaf.shape[1:]).swapaxes(0, 1)
        own = stacked[first : first + mesh.size]
        return wrapped(jax.device_put(own, mapping.spread_sharding(mesh)), like)

    replicated = jax.tree.map(
        lambda leaf, like: wrapped(mapping.replicate(leaf, devices), like),
        host._replace(clients=()),
        like._replace(clients=()),
    )
    return replicated._replace(clients=jax.tree.map(spread, host.clients, like.clients))


# How many of the newest checkpoints stay.
KEPT = 2


class Checkpoints:
    """The checkpoints of one run, in `workdir/checkpoints`.

    Args:
      directory: made where it does not exist.
      keep: how many of the newest stay.

    Raises:
      UserError: it is no directory, or cannot be written.
    """

    def __init__(self, directory: pathlib.Path, keep: int = KEPT):
        self._directory = directory.resolve()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=True, create=True
        )
        try:
            self._manager = ocp.CheckpointManager(self._directory, options=options)
        except OSError as error:
            raise UserError(f"{self._directory} cannot be used ({error.strerror}).") from error

    def latest_round(self) -> int | None:
        """Returns the round of the newest checkpoint; None where there is none."""
        return self._manager.latest_step()

    def save(self, state: FederatedState, num_clients: int) -> None:
        """Copies the state to the host and writes it in the background."""
        host = to_host(state, num_clients)
        self._manager.save(int(host.round), args=ocp.args.StandardSave(_as_dict(host)))

    def restore(
        self, like: FederatedState, num_clients: int, devices: Sequence[jax.Device]
    ) -> FederatedState:
        """Reads the newest checkpoint.

        Args:
          like: a state of this run, for structure, shapes and dtypes.
          num_clients: seen and unseen.
          devices: that the run uses.

        Raises:
          UserError: there is none, or it cannot be read, or is of another method or model.
        """
        newest = self.latest_round()
        if newest is None:
            raise UserError(f"There is no checkpoint in {self._directory}; start without --resume.")
        template = to_host(like, num_clients)
        folder = self._directory / str(newest)
        try:
            # Given shapes, Orbax would cut and pad arrays to fit them.
            restored = self._manager.restore(newest, args=ocp.args.StandardRestore())
            leaves = [np.asarray(restored[name]) for name in sorted(restored)]
        except Exception as error:  # Orbax raises whatever its storage meets.
            _silence_abandoned_reads()
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise UserError(
                f"The checkpoint of round {newest} cannot be read ({reason}); remove the folder "
                f"{folder} to resume from the one before, or start anew in another work directory."
            ) from error
        wanted = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(template)]
        if [(leaf.shape, leaf.dtype) for leaf in leaves] != wanted:
            raise UserError(
                f"The checkpoint of round {newest} in {folder} is of another model, method or "
                "number of clients; name another --workdir."
            )
        host = jax.tree.unflatten(jax.tree.structure(template), leaves)
        return to_devices(host, like, devices)

    def close(self) -> None:
        """Waits until everything is written."""
        self._manager.wait_until_finished()
        self._manager.close()


def latest_round(directory: pathlib.Path) -> int | None:
    """Returns the round of the newest checkpoint in a run's work directory; None for none."""
    folders = (directory / "checkpoints").glob("[0-9]*")
    return max((int(folder.name) for folder in folders if folder.name.isdigit()), default=None)


def _silence_abandoned_reads() -> None:
    """Keeps reads that Orbax gave up from complaining on standard error that nobody waits."""
    report = sys.unraisablehook

    def hook(unraisable):
        if str(unraisable.exc_value) != "Event loop is closed":
            report(unraisable)

    sys.unraisablehook = hook


def _as_dict(state: FederatedState) -> dict[str, PyTree]:
    """Orbax keeps no empty containers, so the leaves go by number of their place."""
    return {f"{index:04d}": leaf for index, leaf in enumerate(jax.tree.leaves(state))}
