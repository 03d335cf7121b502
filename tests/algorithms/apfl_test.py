"""APFL: mixtures of a personalized and the global model, from FedAvg to local training."""

import batch_norm
import federation
import identities
import jax
import jax.numpy as jnp
import numpy as np
import plain
import pytest
import quadratics
from identities import ALL_CLIENTS
from quadratics import ETA, MEANS, START, STEPS, near, personal_gaps, vector


@pytest.mark.parametrize("of_clients", [False, True])
def test_closed_form(of_clients):
    """`alpha_k` learns at a rate of its own, or at that of the models, schedule included."""
    w, v, alpha = START, np.tile(START, (3, 1)), np.full((3, 1), 0.3)
    for round in range(2):
        eta = ETA * 0.5**round if of_clients else ETA
        rate = eta if of_clients else 0.1
        theta = np.tile(w, (3, 1))
        for _ in range(STEPS):
            slope = alpha * v + (1 - alpha) * theta - MEANS  # of the mixture
            moved = np.clip(alpha - rate * (slope * (v - theta)).sum(1, keepdims=True), 0, 1)
            theta, v = theta - eta * (theta - MEANS), v - eta * alpha * slope
            alpha = moved
        w = theta.mean(axis=0)
    local = quadratics.LOCAL
    if of_clients:
        local = local._replace(schedule=lambda round: 0.5**round)
    outcome = quadratics.run(
        "apfl", 2, local=local, alpha=0.3, alpha_rate=0.1, use_client_rate=of_clients
    )
    near(vector(outcome.server.params), w)
    near(vector(outcome.clients.params), v)
    near(outcome.clients.alpha, alpha[:, 0])
    assert not np.allclose(alpha, 0.3, atol=0.01)
    mixed = alpha * v + (1 - alpha) * w
    near(outcome.scores["personal"]["test"]["loss"], personal_gaps(mixed))


def test_lies_between_fedavg_and_local_training():
    average, local = (
        identities.run("fedavg", plan=ALL_CLIENTS),
        identities.run("local", plan=ALL_CLIENTS),
    )
    held = {"plan": ALL_CLIENTS, "alpha_rate": 0.0, "weight_by_size": True}
    common = identities.run("apfl", alpha=0.0, **held)
    federation.assert_close(common.scores["personal"], average.scores["global"])
    own = identities.run("apfl", alpha=1.0, join="initial", **held)
    federation.assert_close(own.server.params, average.server.params)
    federation.assert_close(own.clients.params, local.clients)
    federation.assert_close(own.scores["personal"], local.scores["personal"])
    assert federation.differ(
        identities.run("apfl", alpha=0.5, **held).clients.params, local.clients
    )
    moving = identities.run("apfl", plan=ALL_CLIENTS, alpha=0.5, alpha_rate=0.3).clients.alpha
    assert np.all((moving >= 0) & (moving <= 1)) and np.ptp(moving) > 0


def test_batch_norm():
    rate = 0.2

    def mix(alpha, own, common):
        """Parameters are mixed; the statistics are the mixture's, which the client keeps."""
        mixed = plain.combine((alpha, 1 - alpha), (own, common))
        return plain.with_statistics(mixed, plain.statistics(own))

    def one_round(server, clients, ids, found):
        trained = []
        for k in ids:
            x, y = plain.examples(k)
            own, alpha, theta = clients[k].params, clients[k].alpha, server.params
            for _ in range(plain.EPOCHS):
                for u, v in plain.batches(x, y):
                    mixed = mix(alpha, own, theta)
                    of_mixed = plain.gradient(plain.loss)(mixed, u, v)
                    gap = plain.axpy(-1, theta, own)
                    product = sum(map(jnp.vdot, *map(jax.tree.leaves, (of_mixed, gap))))
                    moved = plain.axpy(-plain.RATE * alpha, of_mixed, own)
                    own = plain.with_statistics(moved, plain.observed(mixed, u))
                    theta = plain.step(theta, plain.gradient(plain.loss)(theta, u, v), u)
                    alpha = jnp.clip(alpha - rate * product, 0, 1)
            clients[k] = clients[k]._replace(params=own, alpha=alpha)
            trained.append(theta)
        return batch_norm.fed_average(server, trained, ids, [1] * len(ids))

    batch_norm.check(
        "apfl",
        one_round,
        personal=lambda server, client, x, y: mix(client.alpha, client.params, server.params),
        alpha=0.3,
        alpha_rate=rate,
    )
