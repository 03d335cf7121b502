"""FedNova: normalized updates, and FedAvg where all clients take equally many steps."""

import batch_norm
import federation
import identities
import jax
import jax.numpy as jnp
import numpy as np
import optax
import plain
import plain_loops
import plain_rounds
import pytest
import quadratics
from quadratics import ETA, MEANS, SHARE, SIZES, START, near, steps_towards, vector

from pfljax import core
from pfljax.algorithms.fednova import length_of_steps


def test_closed_form():
    # Each client has one batch, so that all take two steps.
    w, steps = START, np.array([2, 2, 2])
    for _ in range(2):
        thetas = steps_towards(w, MEANS, steps=2)
        w = w + (SHARE @ steps) * (SHARE @ ((thetas - w) / steps[:, None]))
    local = quadratics.LOCAL._replace(epochs=2)
    near(vector(quadratics.run("fednova", 2, local=local).server.params), w)


def test_closed_form_of_different_steps():
    # Batches of one example: a client takes as many steps as it has examples.
    points = np.split(quadratics.POINTS, quadratics.ENDS[:-1])
    w = START
    for _ in range(2):
        changes = []
        for x in points:
            theta = w
            for example in x:
                theta = theta - ETA * (theta - example)
            changes.append(theta - w)
        w = w + (SHARE @ SIZES) * (SHARE @ (np.stack(changes) / SIZES[:, None]))
    local = quadratics.LOCAL._replace(epochs=1, batch_size=1, shuffle=False)
    near(vector(quadratics.run("fednova", 2, local=local).server.params), w)


def test_with_equal_steps_is_fedavg():
    equal = federation.local_training(shuffle=False, num_steps=3)
    federation.assert_close(
        identities.run("fednova", local=equal).server.params,
        identities.run("fedavg", local=equal).server.params,
    )
    assert federation.differ(
        identities.run("fednova").server.params, identities.run("fedavg").server.params
    )


@pytest.mark.parametrize("momentum, decay", [(0.0, 0.0), (0.7, 0.0), (0.0, 0.5)])
def test_the_length_of_steps_is_that_of_the_paper(momentum, decay):
    optimizer = optax.chain(optax.add_decayed_weights(decay), optax.sgd(0.1, momentum=momentum))
    local = core.LocalTraining(
        optimizer, batch_size=4, epochs=2, schedule=lambda round: 0.5**round, observe=print
    )
    data = jax.tree.map(jnp.asarray, federation.examples()).of_client(jnp.int32(0))
    context = core.Context(jax.random.key(0), jnp.int32(1), jnp.int32(3))
    steps = 2 * 3  # 11 examples in batches of 4
    powers = np.arange(steps)
    if momentum:
        entries = (1 - momentum ** (steps - powers)) / (1 - momentum)
        paper = (steps - momentum * (1 - momentum**steps) / (1 - momentum)) / (1 - momentum)
        np.testing.assert_allclose(entries.sum(), paper)
    else:  # decay is a proximal term to zero
        entries = (1 - 0.5 * 0.1 * decay) ** powers
    length = length_of_steps(data, context, local, jnp.float32)
    np.testing.assert_allclose(length, 0.5 * 0.1 * entries.sum(), rtol=1e-6)


def test_a_client_without_a_step_has_no_weight():
    local = federation.local_training(shuffle=False, drop_remainder=True)
    some = identities.run("fednova", local=local)
    assert np.all(federation.SIZES[[1, 3]] < local.batch_size)  # these have no batch
    w = identities.run("fedavg", local=local).server.params
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((some.server, w)))
    assert federation.differ(some.server.params, w)


def test_batch_norm():
    def one_round(server, clients, ids, found):
        w, sizes = server.params, np.array(plain.sizes(ids), float)
        steps = plain.EPOCHS * np.ceil(sizes / plain.BATCH)
        trained = [plain.train(w, *plain.examples(k)) for k in ids]
        share = sizes / sizes.sum()
        weights = share / steps * (share @ steps)
        moved = plain.combine((1 - weights.sum(), *weights), (w, *trained))
        means = plain.statistics(plain.average(trained, sizes))
        return server._replace(params=plain.with_statistics(moved, means))

    batch_norm.check("fednova", one_round)


def test_plain_loop():
    def loop(world):
        w = world.params
        for r, cohort in enumerate(world.cohorts):
            sizes = np.array([plain_loops.SIZES[k] for k in cohort], float)
            p, tau, d = sizes / sizes.sum(), [], []
            for k in cohort:
                tau.append(len(list(world.batches(k))))
                d.append((w - world.train(k, w, plain_loops.rate_of(r))) / tau[-1])
            w = w - (p @ np.array(tau)) * (p @ np.stack(d))
            yield plain_loops.Round(w, {})

    plain_rounds.check("fednova", loop, {})
