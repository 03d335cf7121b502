"""APPLE: core models of all clients, mixed by learned relations."""

import federation
import identities
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quadratics
from quadratics import ETA, MEANS, SHARE, STEPS, near, personal_gaps, vector

from pfljax import core
from pfljax.algorithms import ALGORITHMS
from pfljax.engine import sampling


@pytest.mark.parametrize("exponential", [False, True])
def test_closed_form(exponential):
    rate, mu, rounds, epsilon = 0.1, 0.5, 3, 0.01
    start = vector(quadratics.run_from_random_weights("local", eta=0.0).clients)[0]
    cores, relations = np.tile(start, (3, 1)), np.tile(SHARE, (3, 1))
    for done in np.arange(rounds) / 2.4:
        factor = epsilon**done if exponential else 0.5 * (1 + np.cos(np.pi * done))
        factor = factor if done < 1 else 0
        sent = cores.copy()
        for k in range(3):
            seen, p = sent.copy(), relations[k]
            for _ in range(STEPS):
                g = p @ seen - MEANS[k]
                step = seen @ g + factor * mu * (p - SHARE)
                seen[k] = seen[k] - 3 * ETA * p[k] * g
                p = p - rate * step
            cores[k], relations[k] = seen[k], p
    assert done < 1
    outcome = quadratics.run_from_random_weights(
        "apple",
        rounds=rounds,
        one_core=True,
        relation_rate=rate,
        mu=mu,
        duration=0.8,
        exponential=exponential,
        epsilon=epsilon,
    )
    near(vector(outcome.server.cores), cores)
    near(outcome.clients, relations)
    near(outcome.scores["personal"]["test"]["loss"], personal_gaps(relations @ cores))


def test_with_fixed_relations_and_one_step_is_fedavg():
    # Clients of one size have one share, and every core takes its step of the common gradient.
    options = {
        "data": identities.twins(),
        "plan": sampling.CohortPlan(num_clients=5, size=5),
        "local": federation.local_training(shuffle=False, batch_size=16, epochs=1),
    }
    average = identities.run("fedavg", **options)
    resting = identities.run("apple", relation_rate=0.0, one_core=True, **options)
    mixture = jax.tree.map(lambda leaf: leaf.mean(axis=0), resting.server.cores)
    federation.assert_close(mixture, average.server.params)
    federation.assert_close(resting.scores["personal"], average.scores["personal"], 1e-5)
    np.testing.assert_array_equal(resting.clients, np.full((5, 5), 0.2, np.float32))
    learning = identities.run("apple", relation_rate=0.1, one_core=True, **options)
    assert federation.differ(learning.clients, resting.clients, least=1e-2)
    assert federation.differ(learning.scores["personal"], average.scores["personal"])


@pytest.mark.slow
def test_every_setting_counts():
    settings = {"relation_rate": 0.1, "mu": 1.0, "duration": 1.0, "exponential": False}
    usual = identities.run("apple", **settings).clients
    changes = (
        {"mu": 0.0},
        {"duration": 0.5},
        {"exponential": True},
        {"exponential": True, "epsilon": 0.5},
        {"uniform_start": True},
        {"one_core": True},
    )
    others = [identities.run("apple", **{**settings, **change}).clients for change in changes]
    for number, other in enumerate(others):
        for seen in (usual, *others[:number]):
            assert federation.differ(other, seen)
    never = identities.run("apple", **{**settings, "duration": 0.0}).clients
    federation.assert_close(never, others[0])


def test_an_unseen_client_learns_relations():
    outcome = identities.run("apple")
    shares = outcome.server.shares
    np.testing.assert_array_equal(outcome.clients[8], shares)
    algorithm = ALGORITHMS["apple"](
        federation.task(), federation.local_training(), relation_rate=0.1
    )
    data = jax.tree.map(jnp.asarray, federation.examples()).of_client(jnp.int32(8))
    context = core.Context(jax.random.key(1), jnp.int32(3), jnp.int32(3), jnp.int32(8))
    server = jax.tree.map(jnp.asarray, outcome.server)
    joined = algorithm.client_update(server, server.shares, data, context)
    assert np.all(np.abs(joined.state - shares) > 1e-4)
    # The client is evaluated with the last row of the models, which it must not change.
    last = jax.tree.map(lambda leaf: leaf[-1], server.cores)
    federation.assert_close(joined.each, last)
