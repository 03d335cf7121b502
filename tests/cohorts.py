"""A cohort of messages for tests of aggregators, and one round of an aggregator as a plain loop."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pfljax import aggregation, core
from pfljax.aggregation import messages

LENGTH = 10


class Outcome(NamedTuple):
    """What one round leaves: the server's total, its state, the clients' states and sizes."""

    total: Any
    server: Any
    clients: list[Any]
    bits: list[jax.Array]


def uploads(sizes=(3, 1, 2), seed=0):
    """One upload for each client: a weighted tree, and an array without weight."""
    draw = np.random.default_rng(seed)

    def one(weight):
        tree = {"kernel": draw.normal(size=(4, 3)), "bias": draw.normal(size=3)}
        tree = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)
        return core.weighted(tree, weight), jnp.asarray(draw.normal(size=5), jnp.float32)

    return [one(weight) for weight in sizes]


def context(round=0, client=-1, seed=0):
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), round), client + 1)
    return core.Context(key, jnp.int32(round), jnp.int32(LENGTH), jnp.int32(client))


def one_round(aggregator, sent, clients=None, server=None, round=0, seed=0) -> Outcome:
    """Encodes each client's upload, adds them up, and decodes the sum, one after another."""
    zero = messages.of_client(jax.tree.map(jnp.zeros_like, sent[0]))
    if server is None:
        server = aggregator.init_server(zero) if aggregator.init_server else ()
    if clients is None:
        clients = [aggregator.init_client(zero) if aggregator.init_client else () for _ in sent]
    coded, terms, states, bits = [], [], [], []
    for k, upload in enumerate(sent):
        encoded = aggregation.Encoded(
            messages.of_client(upload), messages.size(upload, ()), clients[k]
        )
        if aggregator.encode is not None:
            moment = context(round, k, seed)
            encoded = aggregator.encode(*encoded[:2], clients[k], server, moment)
        coded.append(messages.to_client(encoded.message, upload))
        terms.append(encoded.terms)
        states.append(encoded.state)
        bits.append(encoded.size.bits)

    def added(trees):
        return jax.tree.map(lambda *leaves: sum(leaves), *trees)

    total = added(coded)
    if aggregator.decode is not None:
        received = aggregation.Total(messages.of_total(total), added(terms), jnp.int32(len(sent)))
        message, server = aggregator.decode(received, server, context(round, seed=seed))
        total = messages.to_total(message, total)
    return Outcome(total, server, states, bits)


def flat(tree) -> np.ndarray:
    """All numbers of a tree in one array."""
    return np.concatenate([np.ravel(np.asarray(leaf)) for leaf in jax.tree.leaves(tree)])


def values(upload) -> np.ndarray:
    """The values of a client's upload, before they are multiplied by weights, in one array."""
    return flat(messages.of_client(upload).values)
