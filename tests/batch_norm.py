"""Batch normalization in a method: rounds of the engine equal a plain loop, after every round.

Five of eight clients take part in a round and a ninth never does; their sizes differ, they train
for two epochs, and their last batches are not full. Absent clients are compared too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import federation
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import plain

from pfljax import core, models, tasks
from pfljax.algorithms import ALGORITHMS
from pfljax.engine import mapping, sampling
from pfljax.engine.clients.on_device import to_host
from pfljax.engine.programs import build_init, build_rounds
from pfljax.engine.round import cohort_key
from pfljax.models.layers import BatchNorm, Dense
from pfljax.ops.prototypes import Prototypes

ROUNDS = 2  # after which some clients have taken part twice, and some never
TASK = federation.task("mlp_bn")
LOCAL = federation.local_training(shuffle=False, observe=TASK.observe)
CLIENTS = federation.PLAN.num_clients  # the clients that are not held out

Client = Any  # the state of a client, as the method has it
Server = Any  # likewise the server's
# (server, clients, ids, found) -> server
PlainRound = Callable[[Server, list[Client], list[int], list[Client]], Server]


def wide(tree: core.PyTree) -> core.PyTree:
    """Copies a tree with its floats in float64; the engine donates the buffers of the original."""

    def one(leaf):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return leaf.astype(jnp.float64)

    return jax.tree.map(one, tree)


def on_host(state: core.FederatedState) -> tuple[Server, list[Client]]:
    """Returns the server's state and the state of each client as NumPy arrays."""
    host = jax.tree.map(np.array, to_host(state, len(federation.SIZES)))
    clients = [jax.tree.map(lambda leaf, k=k: leaf[k], host.clients) for k in range(9)]
    return host.server, clients


def check(
    name: str,
    plain_round: PlainRound,
    *,
    personal: Callable[..., plain.Model] | None = None,
    task: core.Task = TASK,
    local: core.LocalTraining = LOCAL,
    rounds: int = ROUNDS,
    **settings,
) -> None:
    """Runs a method in the engine and as a plain loop, and compares both after each round.

    Args:
      name: Name of the method.
      plain_round: `(server, clients, ids, found) -> server`, a round of the cohort `ids`; it
        replaces the states of these clients in the list `clients`. `found` are the clients' states
        that the engine has after the round.
      personal: `(server, client, x, y) -> model`, compared with `personalize` after the last round
        for all clients, the held-out one too; None for no comparison.
      task: The task `mlp_bn`, possibly with other rules about the paths of its arrays.
      local: Local training of the clients.
      rounds: Number of rounds.
      **settings: Hyper-parameters of the method.
    """
    with jax.enable_x64(True):
        algorithm = ALGORITHMS[name](task, local, **settings)
        device = jax.devices()[:1]
        placed = wide(mapping.replicate(federation.examples(), device))
        state = wide(
            build_init(algorithm, join="initial", devices=device)(placed, jax.random.key(0))
        )
        advance = build_rounds(
            algorithm, federation.PLAN, clients_per_chunk=2, rounds_per_call=1, devices=device
        )
        server, clients = on_host(state)
        for number in range(rounds):
            key = cohort_key(jax.random.key(0), jnp.int32(number))
            ids = sorted(int(k) for k in sampling.sample(federation.PLAN, key))
            state, _ = advance(state, placed, np.int32(rounds), np.int32(1))
            found_server, found = on_host(state)
            server = plain_round(server, clients, ids, found)
            close(found_server, server)
            for k, client in enumerate(clients):
                close(found[k], client)
        if personal is not None:
            of_engine = jax.jit(algorithm.personalize)
            for k in range(len(clients)):
                data = wide(jax.tree.map(jnp.asarray, federation.examples())).of_client(
                    jnp.int32(k)
                )
                context = core.Context(jax.random.key(k), jnp.int32(0), jnp.int32(1), jnp.int32(k))
                deployed = of_engine(server, clients[k], data, context)
                close(deployed, personal(server, clients[k], *plain.examples(k)))


def close(found: core.PyTree, wanted: core.PyTree) -> None:
    """Asserts that two trees hold the same numbers, to the rounding of float64."""
    federation.assert_close(
        jax.tree.map(np.asarray, found), jax.tree.map(np.asarray, wanted), tolerance=1e-9
    )


def fed_average(
    server: Server,
    trained: list[plain.Model],
    ids: list[int],
    weights: Sequence[float] | None = None,
) -> Server:
    """Returns the server with the clients' mean as its params, weighted by examples by default."""
    return server._replace(params=plain.average(trained, weights or plain.sizes(ids)))


def averaged(train: Callable[..., plain.Model]) -> PlainRound:
    """A round of FedAvg whose clients train by `train(w, x, y)`."""

    def one_round(server, clients, ids, found):
        trained = [train(server.params, *plain.examples(k)) for k in ids]
        return fed_average(server, trained, ids)

    return one_round


def personal_heads(train: Callable[..., plain.Model]) -> PlainRound:
    """A round of FedPer whose clients train by `train(model, x, y)`."""

    def one_round(server, clients, ids, found):
        bodies = []
        for k in ids:
            trained = train({**server.average.params, **clients[k]}, *plain.examples(k))
            clients[k] = {"head": trained["head"]}
            bodies.append({"body": trained["body"]})
        return server._replace(average=fed_average(server.average, bodies, ids))

    return one_round


def head_then_body(
    model: plain.Model, x: jax.Array, y: jax.Array, *objective, epochs: int = 1
) -> plain.Model:
    """Trains the head for some epochs on the loss, and then the body on an objective."""
    model = plain.train(model, x, y, part="head", epochs=epochs)
    return plain.train(model, x, y, *objective, part="body")


def prototypes_of(total: jax.Array, counts: jax.Array, old: Prototypes) -> Prototypes:
    """Returns the mean features of the classes, which stay as they are without examples.

    Args:
      total: `[C, d]`, sums of the features of a class over all clients.
      counts: `[C]`, numbers of their examples.
      old: Prototypes before the round.
    """
    here = counts > 0
    means = total / np.where(here, counts, 1)[:, None]
    return old._replace(means=np.where(here[:, None], means, old.means), seen=old.seen | here)


def aligned(
    model: plain.Model, x: jax.Array, y: jax.Array, known: Prototypes, lam: float
) -> jax.Array:
    """The loss, and `lam` times the distance of features in training mode to the prototypes."""
    gaps = jnp.mean((plain.features(model, x, True) - known.means[y]) ** 2, axis=1)
    return plain.loss(model, x, y) + lam * jnp.mean(gaps * known.seen[y])


def one_client_update(
    algorithm: core.Algorithm, client: int
) -> tuple[Server, Client, core.ClientOutput]:
    """Returns the states of server and client before the first round, and the client's output."""
    examples = jax.tree.map(jnp.asarray, federation.examples())
    server = algorithm.init_server(examples.population(), jax.random.key(0))
    state = algorithm.init_client(server, examples.profile(jnp.int32(client)), jax.random.key(1))
    context = core.Context(jax.random.key(2), jnp.int32(0), jnp.int32(1), jnp.int32(client))
    output = jax.jit(algorithm.update_client)(
        server, state, examples.of_client(jnp.int32(client)), context
    )
    return server, state, output


@functools.cache
def task_with_normalization_in_the_head() -> core.Task:
    """A body without batch normalization, and a head that begins with a layer of it."""

    class Head(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Dense(federation.NUM_CLASSES)(BatchNorm()(x))

    network = models.from_flax(Dense(4), Head(), (federation.NUM_FEATURES,))
    return tasks.classification(network, num_classes=federation.NUM_CLASSES)


def assert_only_statistics_moved(before: plain.Model, after: plain.Model) -> None:
    """Asserts that the head of `task_with_normalization_in_the_head` has other statistics only.

    Args:
      before: A model before a round.
      after: The same model after it.
    """
    federation.assert_close(after["head"]["Dense_0"], {**before["head"]["Dense_0"]})
    for statistic in ("mean", "var"):
        old, new = (m["head"]["BatchNorm_0"][statistic] for m in (before, after))
        assert federation.differ(new, old, least=1e-2)
    federation.assert_close(after["head"]["BatchNorm_0"]["scale"], jnp.ones(4))
