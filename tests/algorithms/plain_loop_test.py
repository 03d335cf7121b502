"""Rounds of the engine equal the plain loops of `plain_loops.py`, written from the papers.

Four clients of 13, 6, 9 and 3 examples, two of them in each of three rounds, three epochs in stored
order with partial last batches, a schedule of the learning rate, float64: the server's state and
every client's, of absent ones too, after every round, and what clients deploy after the last.
"""

import functools
import importlib

import federation
import jax
import jax.numpy as jnp
import numpy as np
import optax
import plain_loops as plain
import pytest

from pfljax import core
from pfljax.algorithms import ALGORITHMS
from pfljax.core import streams
from pfljax.engine import mapping, sampling
from pfljax.engine.clients.on_device import to_host
from pfljax.engine.programs import build_init, build_rounds
from pfljax.engine.round import client_context, cohort_key

TOLERANCE = 1e-10
PLAN = sampling.CohortPlan(num_clients=4, size=2)

GENERATED = {"weight": 0.7, "decay": 0.5, "first_round": 1, "diversity": 0.3}
GENERATED |= {"generator_steps": 2, "generator_rate": 0.01}
# What FedGen draws, the same in every step: labels and noise.
DRAW = np.random.default_rng(8)
DRAWN = {
    who: (DRAW.integers(0, plain.CLASSES, count).astype(np.int32), DRAW.normal(size=(count, 3)))
    for who, count in (("client", plain.BATCH), ("server", 5))
}

# The part of the server's state that a loop has too.
VIEWS = {
    "fedcac": lambda server: server.average,  # the threshold is kept in single precision
    "fedgen": lambda server: (server.average, server.generator, server.label_shares),
}

# Hyper-parameters of the method, and of its plain loop where these differ.
CASES = {
    "fedfomo": (
        {"models": 4, "validation_share": 0.35, "exploration": 0.0},
        {"validation_share": 0.35},
    ),
    "apple": ({"relation_rate": 0.05, "mu": 0.5, "duration": 0.7, "epsilon": 0.1},) * 2,
    "pfedme": (
        {"lam": 2.0, "inner_steps": 3, "inner_rate": 0.1, "beta": 1.3, "weight_decay": 0.01},
    )
    * 2,
    "apfl": ({"alpha": 0.4, "alpha_rate": 0.2},) * 2,
    "fedala": ({"eta": 2.0, "share": 0.7, "first_passes": 14, "settled": 0.01},) * 2,
    "perfedavg": ({"alpha": 0.2, "hessian_free": False, "delta": 0.01, "adaptation_steps": 3},) * 2,
    "perfedavg hessian_free": (
        {"alpha": 0.2, "hessian_free": True, "delta": 0.01, "adaptation_steps": 3},
    )
    * 2,
    "fedem": ({"learners": 2, "absent_count": False},) * 2,
    "fedem absent_count": ({"learners": 2, "absent_count": True},) * 2,
    "pfedhn": (
        {"hidden": 6, "layers": 2, "embedding_size": 3, "rate": 0.05, "momentum": 0.5}
        | {"weight_decay": 0.01, "clip": 2.0},
        {"rate": 0.05, "momentum": 0.5, "weight_decay": 0.01, "clip": 2.0},
    ),
    "fedrep": ({"head_epochs": 2, "weight_by_size": True},) * 2,
    "fedrep uniform": ({"head_epochs": 2, "weight_by_size": False},) * 2,
    "ditto": ({"lam": 0.5, "personal_epochs": 2},) * 2,
    "fedavg": ({},) * 2,
    "fedprox": ({"mu": 0.5},) * 2,
    "scaffold": ({},) * 2,
    "fedper": ({},) * 2,
    "fedbabu": ({"fine_tuning_epochs": 2},) * 2,
    "fedbn": ({},) * 2,
    "fedproto": ({"lam": 0.7},) * 2,
    "fedpac": ({"lam": 0.7, "head_epochs": 2},) * 2,
    "fedkd": ({"distillation": 0.7, "hidden": 1.3, "energy_start": 0.6, "energy_end": 0.9},) * 2,
    "fedcp": ({"lam": 0.7, "gumbel": 0.0}, {"lam": 0.7}),
    "fedcac": ({"tau": 0.5, "beta": 2.0},) * 2,
    "fedgen": (
        {**GENERATED, "generator_batch": 5, "noise_size": 3, "hidden_size": 4},
        {**GENERATED, "drawn": DRAWN},
    ),
    "local": ({},) * 2,
    "fedavg_ft": ({"fine_tuning_epochs": 2},) * 2,
}


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
        layers=(("body",), ("head",)),
        is_norm=lambda path: path[0] == "head",
    )


@functools.cache
def examples():
    draw = np.random.default_rng(4)
    total = sum(plain.SIZES)
    targets = draw.integers(0, plain.CLASSES, total).astype(np.int32)
    centres = draw.normal(size=(plain.CLASSES, plain.INPUTS))
    inputs = centres[targets] + 0.7 * draw.normal(size=(total, plain.INPUTS))
    return federation.examples_of(inputs, targets, np.array(plain.SIZES), num_classes=plain.CLASSES)


def cohorts() -> list[list[int]]:
    """Who takes part; between them all four clients do, some late and some twice."""
    key = jax.random.key(SEED)
    chosen = [sampling.sample(PLAN, cohort_key(key, r)).tolist() for r in range(plain.ROUNDS)]
    return [[k for k in ids if k >= 0] for ids in chosen]


SEED = 2


def test_clients_join_late_and_take_part_again():
    seen = [k for cohort in cohorts() for k in cohort]
    assert len(seen) == 6 and set(seen) == set(range(4))
    assert not set(seen[:2]) & set(seen[2:4]) or set(seen[2:4]) != set(seen[:2])


def world_of(state) -> plain.World:
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


def row(clients, k):
    return jax.tree.map(lambda leaf: leaf[k], clients)


def close(ours, expected, what):
    ours = plain.flat(ours)
    assert ours.dtype == np.float64
    np.testing.assert_allclose(ours, expected, rtol=TOLERANCE, atol=TOLERANCE, err_msg=what)


@pytest.mark.parametrize("case", CASES)
def test_rounds_equal_the_plain_loop(case, monkeypatch):
    name, (ours, theirs) = case.split()[0], CASES[case]
    if name == "fedgen":
        drawn = {len(labels): (labels, noise) for labels, noise in DRAWN.values()}
        module = importlib.import_module("pfljax.algorithms.fedgen")
        monkeypatch.setattr(module, "draw", lambda key, shares, count, *rest: drawn[count])
    with jax.enable_x64(True):
        follow(name, ours, getattr(plain, name), theirs)


def follow(name, hyperparameters, loop, settings):
    local = core.LocalTraining(
        optax.sgd(plain.ETA),
        batch_size=plain.BATCH,
        epochs=plain.EPOCHS,
        shuffle=False,
        schedule=lambda round: jnp.power(plain.DECAY, round),
    )
    if name == "pfedme":
        hyperparameters = {**hyperparameters, "train_to_evaluate": True}
    algorithm = ALGORITHMS[name](task(), local, **hyperparameters)
    devices = jax.devices()[:1]
    placed = mapping.replicate(examples(), devices)
    step = build_rounds(algorithm, PLAN, clients_per_chunk=2, rounds_per_call=1, devices=devices)
    state = build_init(algorithm, devices=devices)(placed, jax.random.key(SEED))
    start = jax.tree.map(np.asarray, to_host(state, 4))
    last = None
    for number, expected in enumerate(loop(world_of(start), **settings)):
        state, _ = step(state, placed, np.int32(plain.ROUNDS), np.int32(1))
        host = to_host(state, 4)
        server = VIEWS.get(name, lambda server: server)(host.server)
        close(server, expected.server, f"server after round {number}")
        for k in range(4):
            if not jax.tree.leaves(host.clients):
                continue
            unchanged = plain.flat(row(start.clients, k))
            close(
                row(host.clients, k),
                expected.clients.get(k, unchanged),
                f"client {k} after round {number}",
            )
        last = expected
    assert number == plain.ROUNDS - 1
    if last.deployed is not None:
        compare_deployed(algorithm, host, last.deployed)


def compare_deployed(algorithm, host, deployed):
    data, server = jax.tree.map(jnp.asarray, (examples(), host.server))

    @jax.jit
    def personalize(k, client):
        length = jnp.int32(plain.ROUNDS)
        context = client_context(host.key, length, length, streams.EVALUATION, k)
        return algorithm.personalize(server, client, data.of_client(k), context)

    for k, expected in deployed.items():
        ours = personalize(jnp.int32(k), row(host.clients, k))
        close(ours, expected, f"what client {k} deploys")


def test_every_method_has_a_plain_loop():
    assert {case.split()[0] for case in CASES} == set(ALGORITHMS)
