"""SCAFFOLD: control variates of the server and of the clients."""

import batch_norm
import federation
import jax
import jax.numpy as jnp
import numpy as np
import optax
import plain
import quadratics
from quadratics import ETA, MEANS, START, STEPS, near, vector

from pfljax.algorithms import ALGORITHMS
from pfljax.engine import sampling


def test_closed_form():
    rate, w, c, c_k = 0.5, START, START, np.zeros((3, 4))
    for _ in range(3):
        theta = np.tile(w, (3, 1))
        for _ in range(STEPS):
            theta = theta - ETA * ((theta - MEANS) + c - c_k)
        new = c_k - c + (w - theta) / (STEPS * ETA)  # option II of the paper
        w = w + rate * (theta - w).mean(axis=0)
        c, c_k = c + (new - c_k).mean(axis=0), new
    outcome = quadratics.run("scaffold", 3, server_optimizer=optax.sgd(rate))
    near(vector(outcome.server.average.params), w)
    near(vector(outcome.server.control), c)
    near(vector(outcome.clients), c_k)


def test_begins_as_uniform_fedavg_and_then_differs():
    # In the first round every control variate is zero; clients of one size have one weight.
    draw = np.random.default_rng(1)
    targets = draw.integers(0, 3, 40).astype(np.int32)
    inputs = draw.normal(size=(40, federation.NUM_FEATURES)).astype(np.float32) + targets[:, None]
    data = federation.examples_of(inputs, targets, np.full(5, 8), num_classes=3)
    plan = sampling.CohortPlan(num_clients=5, size=5)

    def models(rounds):
        local = federation.local_training(shuffle=False)
        scaffold = ALGORITHMS["scaffold"](federation.task(), local)
        average = ALGORITHMS["fedavg"](federation.task(), local)
        return (
            federation.run(scaffold, data=data, plan=plan, rounds=rounds).server.average.params,
            federation.run(average, data=data, plan=plan, rounds=rounds).server.params,
        )

    federation.assert_close(*models(1))
    assert federation.differ(*models(3))


def test_batch_norm():
    def one_round(server, clients, ids, found):
        w, c = server.average.params, server.control
        trained, change = [], jax.tree.map(jnp.zeros_like, c)
        for k in ids:
            x, y = plain.examples(k)
            theta, seen = w, []
            for _ in range(plain.EPOCHS):
                for u, v in plain.batches(x, y):
                    slope = plain.gradient(plain.loss)(theta, u, v)
                    seen.append(slope)
                    corrected = plain.combine((1, 1, -1), (slope, c, clients[k]))
                    theta = plain.step(theta, corrected, u)
            control = plain.average(seen, np.ones(len(seen)))
            change = plain.combine((1, 1, -1), (change, control, clients[k]))
            clients[k] = control
            trained.append(theta)
        for tree in (c, *clients):
            assert not any(np.any(leaf) for leaf in jax.tree.leaves(plain.statistics(tree)))
        average = batch_norm.fed_average(server.average, trained, ids, np.ones(len(ids)).tolist())
        return server._replace(
            average=average, control=plain.axpy(1 / batch_norm.CLIENTS, change, c)
        )

    batch_norm.check("scaffold", one_round)
