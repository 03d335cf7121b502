"""Groups of clients with models of different architectures in one run."""

import dataclasses

import federation
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfljax import models, tasks
from pfljax.algorithms import ALGORITHMS
from pfljax.engine import groups, mapping, sampling
from pfljax.engine.clients import on_device
from pfljax.errors import UserError
from pfljax.models import layers

ROUNDS = 2
SIZES = (5, 4)  # clients of each group


def examples():
    """The tiny federation in two parts, all clients of which train."""
    whole = dataclasses.replace(federation.examples(), num_participants=9)
    return whole, tuple(
        dataclasses.replace(
            whole,
            offsets={name: all[part] for name, all in whole.offsets.items()},
            sizes={name: all[part] for name, all in whole.sizes.items()},
            class_counts=whole.class_counts[part],
            num_participants=SIZES[number],
        )
        for number, part in enumerate((slice(0, 5), slice(5, 9)))
    )


def task_of(network):
    return tasks.classification(network, num_classes=federation.NUM_CLASSES)


def mlp(*widths):
    return models.mlp((federation.NUM_FEATURES,), federation.NUM_CLASSES, widths=widths)


class DeepHead(nn.Module):
    """A head with a hidden layer."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(layers.Dense(6)(x))
        return layers.Dense(federation.NUM_CLASSES)(x)


class Body(nn.Module):
    """A body with one layer."""

    @nn.compact
    def __call__(self, x):
        return nn.relu(layers.Dense(4)(x))


def run(name, networks, devices=1, chunk=1, cohorts=SIZES):
    """Runs a method over groups; returns states by client, server states, metrics and scores."""
    used = jax.devices()[:devices]
    made = []
    for network, size, cohort in zip(networks, SIZES, cohorts, strict=True):
        task = task_of(network)
        local = federation.local_training(observe=task.observe)
        algorithm = ALGORITHMS[name](task, local, **federation.held_by_the_server(name))
        plan = sampling.CohortPlan(num_clients=size, size=cohort)
        made.append(groups.Group(algorithm, task, plan, chunk))
    placed = mapping.replicate(examples()[1], used)
    state = groups.build_init(made, devices=used)(placed, jax.random.key(0))
    evaluate = groups.build_evaluation(made, batch_size=4, devices=used)
    before = jax.tree.map(np.asarray, evaluate(state, placed, np.int32(ROUNDS)))
    step = groups.build_rounds(made, rounds_per_call=ROUNDS, devices=used)
    state, metrics = step(state, placed, np.int32(ROUNDS), np.int32(ROUNDS))
    scores = jax.tree.map(np.asarray, evaluate(state, placed, np.int32(ROUNDS)))
    clients = [
        on_device.to_host(state._replace(server=(), clients=own), size).clients
        for own, size in zip(state.clients, SIZES, strict=True)
    ]
    servers = jax.tree.map(federation.same_on_every_device, state.server)
    return clients, servers, jax.tree.map(np.asarray, metrics), before, scores


@pytest.mark.parametrize("name", ["fedproto", "fedper", "fedcac", "mime"])
def test_groups_of_one_architecture_are_one_federation(name):
    """Sums, exchange and evaluation are over all clients, with the same keys for each of them."""
    clients, servers, metrics, _, scores = run(name, [mlp(4), mlp(4)], devices=2, chunk=2)
    task = task_of(mlp(4))
    alone = federation.run(
        ALGORITHMS[name](task, federation.local_training(observe=task.observe)),
        plan=sampling.CohortPlan(num_clients=9, size=9),
        rounds=ROUNDS,
        data=examples()[0],
        score=task,
    )
    together = jax.tree.map(lambda *leaves: np.concatenate(leaves), *clients)
    federation.assert_close(together, alone.clients)
    for server in servers:
        federation.assert_close(server, alone.server)
    federation.assert_close(scores, alone.scores, tolerance=1e-5)
    for metric in set(metrics) - {"slots"}:
        federation.assert_close(metrics[metric], alone.metrics[metric])


@pytest.mark.parametrize(
    "name, networks",
    [
        ("fedproto", [mlp(4), mlp(6, 4)]),
        ("fedmd", [mlp(4), mlp(6)]),
        (
            "fedper",
            [
                models.from_flax(Body(), head, (federation.NUM_FEATURES,))
                for head in (layers.Dense(federation.NUM_CLASSES), DeepHead())
            ],
        ),
    ],
)
def test_two_architectures_share_what_they_upload(name, networks):
    clients, servers, metrics, before, scores = run(name, networks, devices=2)
    shapes = [jax.tree.map(jnp.shape, own) for own in clients]
    assert shapes[0] != shapes[1], "each group has a different model"

    def part(server):
        if name == "fedmd":
            return server.scores, server.rows, server.next_rows
        return server.prototypes.means if name == "fedproto" else server.average.params

    shared = [part(server) for server in servers]
    jax.tree.map(np.testing.assert_array_equal, *shared)
    assert np.all(metrics["cohort"] == 9) and np.all(metrics["not_finite"] == -2)
    right, untrained = (found["personal"]["test"]["accuracy"].sum() for found in (scores, before))
    assert right > untrained

    # One group alone, without the uploads of the other, has another shared part.
    alone, others, *_ = run(name, networks, cohorts=(5, 1))
    assert federation.differ(part(others[0]), shared[0])


def test_devices_and_chunks_change_nothing():
    networks = [mlp(4), mlp(6, 4)]
    one = run("fedproto", networks, cohorts=(3, 2))
    other = run("fedproto", networks, devices=3, chunk=2, cohorts=(3, 2))
    for ours, theirs in zip(one[0], other[0], strict=True):
        federation.assert_close(ours, theirs)
    federation.assert_close(one[4], other[4], tolerance=1e-5)


def test_refusals():
    with pytest.raises(UserError, match="group 1 upload other arrays"):
        run("fedper", [mlp(4), mlp(6, 4)])
    with pytest.raises(UserError, match="group 1 upload other arrays"):
        run("mime", [mlp(4), mlp(6, 4)])  # in the exchange before the updates
    with pytest.raises(UserError, match="Group 1 has held-out clients"):
        groups._first_ids([examples()[1][0], federation.examples()])
