"""Rounds of a method in the engine equal the method as a plain loop, written from the paper.

Four clients of 13, 6, 9 and 3 examples, two of them in each of three rounds, three epochs in stored
order with partial last batches, a schedule of the learning rate, float64: the server's state and
every client's, of absent ones too, after every round, and what clients deploy after the last.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping

import federation
import jax
import jax.numpy as jnp
import numpy as np
import optax
import plain_loops as plain

from pfljax import core
from pfljax.algorithms import ALGORITHMS
from pfljax.core import streams
from pfljax.engine import mapping, sampling
from pfljax.engine.clients.on_device import to_host
from pfljax.engine.examples import Examples
from pfljax.engine.programs import build_init, build_rounds
from pfljax.engine.round import client_context, cohort_key

TOLERANCE = 1e-10
PLAN = sampling.CohortPlan(num_clients=4, size=2)
SEED = 2


@functools.cache
def task() -> core.Task:
    """The loops' network for the engine, whose models are nested dicts."""
    shapes = {
        "body": {"bias": (plain.FEATURES,), "kernel": (plain.INPUTS, plain.FEATURES)},
        "head": {"bias": (plain.CLASSES,), "kernel": (plain.FEATURES, plain.CLASSES)},
    }

    def init(key):
        leaves, structure = jax.tree.flatten(shapes, is_leaf=lambda x: isinstance(x, tuple))
        keys = jax.random.split(key, len(leaves))
        drawn = [
            0.5 * jax.random.normal(k, shape, jnp.float64)
            for k, shape in zip(keys, leaves, strict=True)
        ]
        return jax.tree.unflatten(structure, drawn)

    def losses(model, batch, key, train=True):
        logits = predict(model, batch.inputs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)

    def features(model, inputs, mask=None, key=None):
        return jnp.tanh(inputs @ model["body"]["kernel"] + model["body"]["bias"])

    def head(model, z, mask=None, key=None):
        return z @ model["head"]["kernel"] + model["head"]["bias"]

    def predict(model, inputs, mask=None, key=None):
        return head(model, features(model, inputs))

    return core.Task(
        init=init,
        losses=losses,
        loss=lambda model, batch, key, train=True: core.mean_over(
            losses(model, batch, key), batch.mask
        ),
        predict=predict,
        features=features,
        head=head,
        is_head=lambda path: path[0] == "head",
        metrics=lambda outputs, batch: {},
        num_classes=plain.CLASSES,
        num_features=plain.FEATURES,
        input_shape=(plain.INPUTS,),
        layers=(("body",), ("head",)),
        is_norm=lambda path: path[0] == "head",
        is_adapter=lambda path: path == ("body", "bias"),
        is_prompt=lambda path: path == ("head", "kernel"),
        class_features=lambda model: model["head"]["kernel"].T,
        output_losses=lambda logits, batch: optax.softmax_cross_entropy_with_integer_labels(
            logits, batch.targets
        ),
    )


@functools.cache
def examples() -> Examples:
    """The examples of the four clients, in float64."""
    draw = np.random.default_rng(4)
    total = sum(plain.SIZES)
    targets = draw.integers(0, plain.CLASSES, total).astype(np.int32)
    centres = draw.normal(size=(plain.CLASSES, plain.INPUTS))
    inputs = centres[targets] + 0.7 * draw.normal(size=(total, plain.INPUTS))
    return federation.examples_of(inputs, targets, np.array(plain.SIZES), num_classes=plain.CLASSES)


def cohorts() -> list[list[int]]:
    """The cohort of each round; each of the four clients is in one, some late and some twice."""
    key = jax.random.key(SEED)
    chosen = [sampling.sample(PLAN, cohort_key(key, r)).tolist() for r in range(plain.ROUNDS)]
    return [[k for k in ids if k >= 0] for ids in chosen]


def check(
    name: str,
    loop: Callable[[plain.World], Iterator[plain.Round]],
    hyperparameters: Mapping[str, object],
    view: Callable[[core.PyTree], core.PyTree] = lambda server: server,
) -> None:
    """Runs a method in the engine and as a plain loop, and compares both after each round.

    Args:
      name: Name of the method.
      loop: The method as a plain loop, which yields after every round; see `plain_loops.Round`.
      hyperparameters: Hyper-parameters of the method in the engine.
      view: `server -> tree`, the part of the server's state that the loop yields too.
    """
    with jax.enable_x64(True):
        _follow(name, loop, hyperparameters, view)


def _follow(name, loop, hyperparameters, view):
    local = core.LocalTraining(
        optax.sgd(plain.ETA),
        batch_size=plain.BATCH,
        epochs=plain.EPOCHS,
        shuffle=False,
        schedule=lambda round: jnp.power(plain.DECAY, round),
        learning_rate=plain.ETA,
    )
    algorithm = ALGORITHMS[name](task(), local, **hyperparameters)
    devices = jax.devices()[:1]
    placed = mapping.replicate(examples(), devices)
    step = build_rounds(algorithm, PLAN, clients_per_chunk=2, rounds_per_call=1, devices=devices)
    state = build_init(algorithm, devices=devices)(placed, jax.random.key(SEED))
    start = jax.tree.map(np.asarray, to_host(state, 4))
    last = None
    for number, expected in enumerate(loop(_world_of(start))):
        state, _ = step(state, placed, np.int32(plain.ROUNDS), np.int32(1))
        host = to_host(state, 4)
        _close(view(host.server), expected.server, f"server after round {number}")
        for k in range(4):
            if not jax.tree.leaves(host.clients):
                continue
            unchanged = plain.flat(_row(start.clients, k))
            _close(
                _row(host.clients, k),
                expected.clients.get(k, unchanged),
                f"client {k} after round {number}",
            )
        last = expected
    assert number == plain.ROUNDS - 1
    if last.deployed is not None:
        _compare_deployed(algorithm, host, last.deployed)


def _compare_deployed(algorithm, host, deployed):
    data, server = jax.tree.map(jnp.asarray, (examples(), host.server))

    @jax.jit
    def personalize(k, client):
        length = jnp.int32(plain.ROUNDS)
        context = client_context(host.key, length, length, streams.EVALUATION, k)
        return algorithm.personalize(server, client, data.of_client(k), context)

    for k, expected in deployed.items():
        ours = personalize(jnp.int32(k), _row(host.clients, k))
        _close(ours, expected, f"what client {k} deploys")


def _world_of(state) -> plain.World:
    data, ends = examples(), np.cumsum(plain.SIZES)
    rows = [slice(end - n, end) for end, n in zip(ends, plain.SIZES, strict=True)]
    key = streams.key_of(jax.random.key(SEED), streams.SERVER_INIT)
    return plain.World(
        x=[np.asarray(data.inputs[r]) for r in rows],
        y=[np.asarray(data.targets[r]) for r in rows],
        cohorts=cohorts(),
        params=plain.flat(task().init(key)),
        server=state.server,
        clients=state.clients,
    )


def _row(clients, k):
    return jax.tree.map(lambda leaf: leaf[k], clients)


def _close(ours, expected, what):
    ours = plain.flat(ours)
    assert ours.dtype == np.float64
    np.testing.assert_allclose(ours, expected, rtol=TOLERANCE, atol=TOLERANCE, err_msg=what)
