"""PGFed: steps on the other clients' losses, and on the weights that these have."""

import batch_norm
import federation
import identities
import jax
import jax.numpy as jnp
import numpy as np
import pgfed_rounds
import plain_rounds
import pytest
import quadratics
from quadratics import near, personal_gaps, vector

from pfljax import core
from pfljax.algorithms import ALGORITHMS


@pytest.mark.parametrize("exact, rate", [(False, 0.02), (True, 0.02), (False, 0.9)])
def test_closed_form(exact, rate):
    mu = 0.5
    w, theta, g, constants, alpha, _, lowest = pgfed_rounds.on_quadratics(4, mu, rate, exact)
    assert (lowest == 0) == (rate == 0.9)  # weights are never negative
    outcome = quadratics.run("pgfed", 4, mu=mu, weight_rate=rate, exact=exact)
    near(vector(outcome.server.average.params), w)
    near(vector(outcome.server.gradients), g)
    near(outcome.server.constants, constants)
    near(outcome.server.weights, alpha)
    near(vector(outcome.clients), theta)
    near(outcome.scores["personal"]["test"]["loss"], personal_gaps(theta))


def test_without_the_others_is_fedavg_and_deploys_what_it_trained():
    average, alone = identities.run("fedavg"), identities.run("pgfed", mu=0.0)
    federation.assert_close(alone.server.average, average.server)
    federation.assert_close(alone.scores["global"], average.scores["global"])
    assert federation.differ(alone.scores["personal"], alone.scores["global"])
    together = identities.run("pgfed", mu=0.5)
    assert federation.differ(together.server.average, average.server)
    fixed = identities.run("pgfed", mu=0.5, weight_rate=0.0)
    np.testing.assert_allclose(fixed.server.weights, 1 / 5, rtol=1e-6)
    assert federation.differ(fixed.server.weights, together.server.weights)


def test_a_held_out_client_weighs_the_last_cohort_uniformly():
    method = federation.make("pgfed", mu=0.5)
    population = jax.tree.map(jnp.asarray, federation.examples()).population()
    server = method.init_server(population, jax.random.key(0))
    server = server._replace(
        gradients=jax.tree.map(lambda leaf: leaf + 1, server.gradients),
        weights=server.weights + 7,
        last=jnp.arange(8) < 4,
    )
    context = core.Context(jax.random.key(0), jnp.int32(1), jnp.int32(3), jnp.int32(8))
    received = method.download(server, context)
    np.testing.assert_allclose(received.weights, 1 / 4)
    for leaf in jax.tree.leaves(received.auxiliary):
        np.testing.assert_allclose(leaf, 0.5)  # mu times the mean of four ones
    known = method.download(server, context._replace(client_id=jnp.int32(2)))
    np.testing.assert_allclose(known.weights, 7)


def test_only_the_exact_download_grows_with_the_number_of_clients():
    population = jax.tree.map(jnp.asarray, federation.examples()).population()
    context = core.Context(jax.random.key(0), jnp.int32(0), jnp.int32(3), jnp.int32(0))
    for exact, models in ((False, 3), (True, 10)):
        method = ALGORITHMS["pgfed"](federation.task(), federation.local_training(), exact=exact)
        server = method.init_server(population, jax.random.key(0))
        received = method.download(server, context)
        size = core.tree.size(received) - 3 * 8  # without constants, weights and the cohort
        assert size == models * core.tree.size(server.average.params)


def test_batch_norm():
    mu, rate = 0.5, 0.3
    batch_norm.check("pgfed", pgfed_rounds.with_batch_norm(mu, rate), mu=mu, weight_rate=rate)


@pytest.mark.parametrize("exact", [False, True])
def test_plain_loop(exact):
    def loop(world):
        return pgfed_rounds.in_batches(world, 0.4, 0.2, exact)

    plain_rounds.check("pgfed", loop, {"mu": 0.4, "weight_rate": 0.2, "exact": exact})
