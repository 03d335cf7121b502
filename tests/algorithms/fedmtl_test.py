"""FedMTL: models regularized by their mean, and local training without that."""

import batch_norm
import federation
import identities
import jax
import jax.numpy as jnp
import numpy as np
import plain
import plain_rounds
import quadratics
from plain_loops import SIZES, Round, rate_of, slope, vector
from quadratics import ETA, MEANS, START, STEPS, near, personal_gaps

RULE = {"lam": 0.3, "decay": 0.05}


def test_closed_form():
    theta = np.tile(START, (3, 1))
    for _ in range(3):
        new = theta.copy()
        for k in range(3):
            for _ in range(STEPS):
                others = np.delete(theta, k, axis=0).sum(axis=0)
                mean = (others + new[k]) / 3
                pull = 2 * RULE["lam"] * (new[k] - mean) + 2 * RULE["decay"] * new[k]
                new[k] = new[k] - ETA * (new[k] - MEANS[k] + pull)
        theta = new
    outcome = quadratics.run("fedmtl", 3, **RULE)
    near(quadratics.vector(outcome.clients), theta)
    near(quadratics.vector(outcome.server.mean), theta.mean(axis=0))
    near(outcome.scores["personal"]["test"]["loss"], personal_gaps(theta))


def test_without_regularizers_is_local_training():
    alone = identities.run("local").clients
    free = identities.run("fedmtl", lam=0.0, decay=0.0).clients
    federation.assert_close(free, alone)
    tied = identities.run("fedmtl", lam=0.5, decay=0.0).clients
    small = identities.run("fedmtl", lam=0.0, decay=0.1).clients
    assert federation.differ(tied, alone) and federation.differ(small, alone)
    assert federation.differ(tied, small)


def test_batch_norm():
    count = batch_norm.CLIENTS

    def objective(model, x, y, own, mean):
        """The loss and both regularizers, where the other clients' models are constants."""
        moved = jax.tree.map(lambda m, new, old: m + (new - old) / count, mean, model, own)
        # The distances of all models to the mean: that of this model, and what the mean's move
        # adds to the others', whose gaps to the mean sum to minus the gap of this model.
        apart = jax.tree.map(lambda new, m: jnp.sum((new - m) ** 2), model, moved)
        rest = jax.tree.map(
            lambda new, m, fixed: 2 * jnp.sum((m - fixed) * (new - m)),
            model,
            moved,
            jax.lax.stop_gradient(moved),
        )
        norms = jax.tree.map(lambda new: jnp.sum(new**2), model)
        apart, rest, norms = (sum(jax.tree.leaves(terms)) for terms in (apart, rest, norms))
        return plain.loss(model, x, y) + RULE["lam"] * (apart + rest) + RULE["decay"] * norms

    def one_round(server, clients, ids, found):
        change = jax.tree.map(np.zeros_like, server.mean)
        for k in ids:
            model = plain.train(clients[k], *plain.examples(k), objective, clients[k], server.mean)
            change = plain.combine((1, 1, -1), (change, model, clients[k]))
            clients[k] = model
        return server._replace(mean=plain.axpy(1 / count, change, server.mean))

    batch_norm.check("fedmtl", one_round, **RULE)


def test_plain_loop():
    def loop(world):
        start, thetas = world.params, {}
        for r, cohort in enumerate(world.cohorts):
            last = {k: thetas.get(k, start) for k in range(len(SIZES))}
            for k in cohort:
                others = sum(theta for j, theta in last.items() if j != k)

                def gradient(theta, x, y, others=others):
                    mean = (others + theta) / len(SIZES)
                    pull = 2 * RULE["lam"] * (theta - mean) + 2 * RULE["decay"] * theta
                    return slope(theta, x, y) + pull

                thetas[k] = world.train(k, last[k], rate_of(r), gradient=gradient)
            mean = sum(thetas.get(k, start) for k in last) / len(SIZES)
            yield Round(vector(start, mean, len(SIZES)), dict(thetas), dict(thetas))

    plain_rounds.check("fedmtl", loop, RULE)
