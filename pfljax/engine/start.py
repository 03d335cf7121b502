"""The state before the first round."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from pfljax.core.types import Algorithm, ClientProfile, FederatedState, Population, PyTree
from pfljax.engine import mapping, store
from pfljax.engine.examples import Examples

# The server's stream; clients draw from fold_in(key, id), and no id is as large.
_SERVER_KEY = 2**32 - 1


def start_server(algorithm: Algorithm, population: Population, key: jax.Array) -> PyTree:
    """Returns the server's first state; `key` is the run's."""
    return algorithm.init_server(jax.random.fold_in(key, _SERVER_KEY), population)


def start_client(
    algorithm: Algorithm, server: PyTree, profile: ClientProfile, key: jax.Array
) -> PyTree:
    """Returns one client's first state; `server` is the server's, and `key` the run's."""
    return algorithm.init_client(server, profile, jax.random.fold_in(key, profile.id))


def start(algorithm: Algorithm, examples: Examples, key: jax.Array) -> FederatedState:
    """Returns the state of round 0, of its clients this device's; see `build_start`."""
    server = start_server(algorithm, examples.population(), key)

    def one(client_id):
        return start_client(algorithm, server, examples.profile(client_id), key), ()

    ids = store.owned_ids(examples.num_clients)
    clients, _ = mapping.map_and_sum(one, ids, clients_per_chunk=1)
    return FederatedState(server, clients, jnp.zeros((), jnp.int32), key)


def build_start(algorithm: Algorithm, *, devices: Sequence[jax.Device] | None = None) -> Callable:
    """Compiles `(examples, key) -> state`, the state of round 0.

    Args:
      algorithm: the method.
      devices: the devices to use; None means all.
    """
    return mapping.over_devices(
        functools.partial(start, algorithm),
        in_axes=(None, None),
        out_axes=mapping.STATE_AXES,
        devices=devices,
    )
