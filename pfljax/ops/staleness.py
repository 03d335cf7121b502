"""Staleness: clients whose training is slow send updates of an earlier version of the server.

A round is one update of the server, from the cohort that arrives; the virtual clock counts these
updates. A client whose local training takes the time `T` arrives at `t + u` in round `t`, `u`
uniform in [0, 1), and has received the version of time `t + u - T`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pfljax.core import streams
from pfljax.core.algorithm import Algorithm
from pfljax.core.types import Context, PyTree
from pfljax.core.uploads import Weighted
from pfljax.ops import stacked


class WithVersions(NamedTuple):
    """The server's state of a method whose clients are delayed.

    Attributes:
      method: The method's server state, which is the newest version.
      versions: The last `S + 1` versions, stacked; version `v` is in row `v % (S + 1)`.
      number: `[]` int32, the number of the newest version, counted from 0.
    """

    method: PyTree
    versions: PyTree
    number: jax.Array


class Delayed(NamedTuple):
    """The download of a delayed client.

    Attributes:
      download: The method's, of an earlier version of the server.
      staleness: `[]` int32, the number of updates of the server since then.
    """

    download: PyTree
    staleness: jax.Array


def clock(delay: float | jax.Array) -> Callable[[Context], jax.Array]:
    """Returns `context -> [] int32`, how many versions a client's update is late.

        T_k = delay |z_k| sqrt(pi / 2),  z_k normal, drawn once for each client
        staleness = ceil(T_k - u),       u uniform in [0, 1), drawn for each round and client

    Args:
      delay: The mean time of a local training, in updates of the server.
    """

    def staleness(context):
        speed = jax.random.normal(streams.key_of(context.client_key, streams.SPEED))
        duration = delay * jnp.abs(speed) * jnp.sqrt(jnp.pi / 2)
        moment = jax.random.uniform(streams.key_of(context.key, streams.ARRIVAL))
        return jnp.ceil(duration - moment).astype(jnp.int32)

    return staleness


def polynomial(exponent: float | jax.Array) -> Callable[[jax.Array], jax.Array]:
    """Returns `staleness -> (1 + staleness)^-exponent`, a factor of late updates."""
    return lambda staleness: (1.0 + staleness) ** -exponent


def delayed(
    algorithm: Algorithm,
    staleness: Callable[[Context], jax.Array],
    discount: Callable[[jax.Array], jax.Array],
    max_staleness: int,
) -> Algorithm:
    """Returns a method whose clients train on earlier versions of the server's state.

    Args:
      algorithm: The method. Functions of it that a derived method replaces must be replaced before.
      staleness: `context -> [] int32`, how many versions a client is late; see `clock`.
      discount: `staleness -> [] factor` of what such a client uploads through `sum`: of the values
        of weighted means, without their weights, and of other sums. See `polynomial`.
      max_staleness: `S`, the largest staleness, to which larger ones are cut. The server keeps
        `S + 1` versions of its state.

    Returns:
      The method; its server state is `WithVersions`, and it has the metric `staleness`. Evaluations
      and the exchange between clients use the newest version.
    """
    rows = max_staleness + 1

    def init_server(population, key):
        method = algorithm.init_server(population, key)
        return WithVersions(method, stacked.repeat(method, rows), jnp.zeros((), jnp.int32))

    def init_client(server, profile, key):
        return algorithm.init_client(server.method, profile, key)

    def version_of(server, context):
        late = jnp.clip(staleness(context), 0, jnp.minimum(max_staleness, server.number))
        return stacked.take(server.versions, (server.number - late) % rows), late

    def download(server, context):
        old, late = version_of(server, context)
        received = old if algorithm.download is None else algorithm.download(old, context)
        return Delayed(received, late)

    def reply(server, message, context):
        return algorithm.reply(version_of(server, context)[0], message, context)

    def client_update(received, client, data, context):
        output = algorithm.client_update(received.download, client, data, context)
        factor = discount(received.staleness)

        def discounted(part):
            if isinstance(part, Weighted):
                return part._replace(value=_scaled(factor, part.value))
            return _scaled(factor, part)

        total = jax.tree.map(
            discounted, output.sum, is_leaf=lambda part: isinstance(part, Weighted)
        )
        late = jnp.asarray(received.staleness, jnp.result_type(float))
        return output._replace(sum=total, metrics={**output.metrics, "staleness": late})

    def server_update(server, uploads, cohort, context):
        method = algorithm.server_update(server.method, uploads, cohort, context)
        number = server.number + 1
        versions = jax.tree.map(
            lambda table, new: table.at[number % rows].set(new), server.versions, method
        )
        return WithVersions(method, versions, number)

    def prepare(received, data, context):
        return algorithm.prepare(received.download, data, context)

    def personalize(server, client, data, context):
        return algorithm.personalize(server.method, client, data, context)

    def exchange(server, client, data, uploads, cohort, member, context):
        return algorithm.exchange(server.method, client, data, uploads, cohort, member, context)

    def global_params(server):
        return algorithm.global_params(server.method)

    return algorithm._replace(
        init_server=init_server,
        init_client=init_client,
        client_update=client_update,
        server_update=server_update,
        personalize=personalize,
        global_params=algorithm.global_params and global_params,
        download=download,
        prepare=algorithm.prepare and prepare,
        reply=algorithm.reply and reply,
        exchange=algorithm.exchange and exchange,
    )


def _scaled(factor: jax.Array, tree: PyTree) -> PyTree:
    """Returns a tree times a factor, each leaf in its own dtype."""
    return jax.tree.map(lambda leaf: factor.astype(leaf.dtype) * leaf, tree)
