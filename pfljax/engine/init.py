"""The initial states of server and clients."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pfljax.core import streams, tree
from pfljax.core.algorithm import Algorithm
from pfljax.core.types import ClientProfile, FederatedState, Population, PyTree
from pfljax.engine import mapping
from pfljax.engine.clients import on_device
from pfljax.engine.examples import Examples

# The state of the server from which a client's private state is initialized: that of the round in
# which the client first takes part, or that before the first round.
JOINS = ("current", "initial")


def init_server(algorithm: Algorithm, population: Population, key: jax.Array) -> PyTree:
    """Returns the server's initial state; `key` is the key of the run."""
    return algorithm.init_server(population, streams.key_of(key, streams.SERVER_INIT))


def init_client(
    algorithm: Algorithm, server: PyTree, profile: ClientProfile, key: jax.Array
) -> PyTree:
    """Returns a client's initial state from the server's state and the key of the run."""
    own_key = streams.key_of(key, streams.CLIENT_INIT, profile.id)
    return algorithm.init_client(server, profile, own_key)


def first_states(algorithm: Algorithm, population: Population) -> tuple[PyTree, PyTree]:
    """Returns the initial states of the server and of one client, to trace their shapes.

    Args:
      algorithm: The method.
      population: The profiles of all clients.
    """
    key = jax.random.key(0)
    server = init_server(algorithm, population, key)
    profile = ClientProfile(jnp.int32(0), *jax.tree.map(lambda all: all[0], population))
    return server, init_client(algorithm, server, profile, key)


def private_state(
    algorithm: Algorithm,
    state: FederatedState,
    client: PyTree,
    profile: ClientProfile,
) -> PyTree:
    """Returns a client's stored private state, or an initial one if it never took part.

    Args:
      algorithm: The method.
      state: The state of the run, with `joined`.
      client: The private state stored for the client.
      profile: The profile of the client; a negative id is padding.
    """
    if not jax.tree.leaves(state.joined):
        return client
    first = init_client(algorithm, state.server, profile, state.key)
    return tree.where(state.joined[jnp.maximum(profile.id, 0)], client, first)


def init_state(
    algorithm: Algorithm, join: str, examples: Examples, key: jax.Array
) -> FederatedState:
    """Returns the state of round 0, with the clients of this device; see `programs.build_init`."""
    server = init_server(algorithm, examples.population(), key)

    def one(client_id):
        return init_client(algorithm, server, examples.profile(client_id), key), ()

    ids = on_device.owned_ids(examples.num_clients)
    clients, _ = mapping.map_and_sum(one, ids, clients_per_chunk=1)
    joined = ()
    if jax.tree.leaves(clients):
        joined = jnp.full(examples.num_clients, join == "initial")
    return FederatedState(server, clients, jnp.zeros((), jnp.int32), key, joined)
