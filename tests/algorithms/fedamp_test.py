"""FedAMP: mixtures of models by their distances, and local training without the pull to them."""

import batch_norm
import federation
import identities
import jax
import numpy as np
import plain
import plain_rounds
import pytest
import quadratics
from plain_loops import Round, rate_of, slope, vector
from quadratics import ETA, MEANS, START, near, personal_gaps, steps_towards


def weights_of(thetas, alpha, sigma):
    """`[n, n]`, the paper's weights of the mixtures of models `[n, d]`, kept convex."""
    squared = ((thetas[:, None] - thetas) ** 2).sum(axis=-1)
    weights = alpha * np.exp(-squared / sigma) / sigma * (1 - np.eye(len(thetas)))
    total = weights.sum(axis=1, keepdims=True)
    return weights / np.maximum(total, 1) + np.maximum(1 - total, 0) * np.eye(len(thetas))


@pytest.mark.parametrize("alpha", [0.4, 3.0])
def test_closed_form(alpha):
    lam, sigma = 0.8, 2.0
    strength = lam / alpha
    theta = mixture = np.tile(START, (3, 1))
    own_weights = set()
    for _ in range(3):
        target = (MEANS + strength * mixture) / (1 + strength)
        theta = steps_towards(theta, target, rate=ETA * (1 + strength))
        weights = weights_of(theta, alpha, sigma)
        own_weights |= set(np.diag(weights) > 0)
        mixture = weights @ theta
    assert own_weights == {alpha < 1}  # With a large alpha, the weights of others exceed 1.
    outcome = quadratics.run("fedamp", 3, lam=lam, alpha=alpha, sigma=sigma)
    near(quadratics.vector(outcome.clients.params), theta)
    near(quadratics.vector(outcome.clients.mixture), mixture)
    near(outcome.scores["personal"]["test"]["loss"], personal_gaps(theta))


def test_without_pull_is_local_training():
    alone = identities.run("local").clients
    federation.assert_close(identities.run("fedamp", lam=0.0, sigma=1.0).clients.params, alone)
    pulled = identities.run("fedamp", lam=1.0, sigma=1.0).clients.params
    assert federation.differ(pulled, alone)
    assert federation.differ(pulled, identities.run("fedamp", lam=1.0, sigma=0.1).clients.params)


def test_batch_norm():
    lam, alpha, sigma = 0.8, 0.4, 2.0

    def one_round(server, clients, ids, found):
        for k in ids:
            pull = (plain.pulled, clients[k].mixture, lam / alpha)
            model = plain.train(clients[k].params, *plain.examples(k), *pull)
            clients[k] = clients[k]._replace(params=model)
        trained = [clients[k].params for k in ids]
        rows = [
            np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(plain.parameters(model))])
            for model in trained
        ]
        weights = weights_of(np.stack(rows), alpha, sigma)
        for row, k in enumerate(ids):
            clients[k] = clients[k]._replace(mixture=plain.combine(weights[row], trained))
        return server

    batch_norm.check("fedamp", one_round, lam=lam, alpha=alpha, sigma=sigma)


def test_plain_loop():
    lam, alpha, sigma = 0.8, 0.4, 2.0

    def loop(world):
        own, mixed = {}, {}
        for r, cohort in enumerate(world.cohorts):
            for k in cohort:
                mixture = mixed.get(k, world.params)

                def gradient(theta, x, y, u=mixture):
                    return slope(theta, x, y) + lam / alpha * (theta - u)

                start = own.get(k, world.params)
                own[k] = world.train(k, start, rate_of(r), gradient=gradient)
            thetas = np.stack([own[k] for k in cohort])
            found = weights_of(thetas, alpha, sigma) @ thetas
            mixed |= dict(zip(cohort, found, strict=True))
            states = {k: vector(theta, mixed[k]) for k, theta in own.items()}
            yield Round(world.params, states, dict(own))

    plain_rounds.check("fedamp", loop, {"lam": lam, "alpha": alpha, "sigma": sigma})
