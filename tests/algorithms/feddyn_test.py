"""FedDyn: dynamic regularization; its first round is FedProx with a doubled server step."""

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
from plain_loops import Round, mean, rate_of, slope, vector
from quadratics import ETA, MEANS, START, STEPS, near

from pfljax.engine import sampling


@pytest.mark.parametrize("squared", [True, False])
def test_closed_form(squared):
    alpha, w, h, g = 0.5, START, 0, np.zeros((3, 4))
    for _ in range(3):
        theta = np.tile(w, (3, 1))
        for _ in range(STEPS):
            gap = theta - w
            length = np.linalg.norm(gap, axis=1, keepdims=True)
            pull = alpha * (gap if squared else gap / (2 * np.where(length, length, 1)))
            theta = theta - ETA * (theta - MEANS - g + pull)
        g, h = g - alpha * (theta - w), h - alpha * (theta - w).mean(axis=0)
        w = theta.mean(axis=0) - h / alpha
    outcome = quadratics.run("feddyn", 3, alpha=alpha, squared=squared)
    near(quadratics.vector(outcome.server.params), w)
    near(quadratics.vector(outcome.server.drift), h)
    near(quadratics.vector(outcome.clients), g)


def test_the_first_round_is_fedprox_with_a_doubled_server_step():
    # With every client present, h / alpha is minus the mean change of the models.
    options = {"data": identities.twins(), "plan": sampling.CohortPlan(num_clients=5, size=5)}
    doubled = optax.sgd(2.0)

    def first(name, **settings):
        return identities.run(name, rounds=1, **settings, **options).server.params

    found = first("feddyn", alpha=1.0)
    federation.assert_close(found, first("fedprox", mu=1.0, server_optimizer=doubled))
    assert federation.differ(found, first("fedprox", mu=0.0, server_optimizer=doubled))


def zeroed(model):
    """A model's parameters, with zeros for its running statistics."""
    return plain.with_statistics(model, jax.tree.map(np.zeros_like, plain.statistics(model)))


def tilted(model, x, y, own, w, alpha):
    """The loss minus `<own, model>`, with a proximal term."""
    products = jax.tree.map(lambda a, b: jnp.sum(a * b), own, model)
    return plain.pulled(model, x, y, w, alpha) - sum(jax.tree.leaves(products))


def test_batch_norm():
    alpha = 0.5

    def one_round(server, clients, ids, found):
        w, trained = server.params, []
        for k in ids:
            trained.append(plain.train(w, *plain.examples(k), tilted, clients[k], w, alpha))
            clients[k] = plain.axpy(-alpha, zeroed(plain.axpy(-1, w, trained[-1])), clients[k])
        average = plain.average(trained, np.ones(len(ids)))
        moved = zeroed(plain.axpy(-1, w, average))
        h = plain.axpy(-alpha * len(ids) / batch_norm.CLIENTS, moved, server.drift)
        return server._replace(params=plain.axpy(-1 / alpha, h, average), drift=h)

    batch_norm.check("feddyn", one_round, alpha=alpha)


def test_plain_loop():
    alpha = 0.3

    def loop(world):
        w, h, own = world.params, np.zeros_like(world.params), {}
        for r, cohort in enumerate(world.cohorts):
            models = {}
            for k in cohort:
                known = own.get(k, np.zeros_like(w))

                def gradient(theta, x, y, w=w, known=known):
                    return slope(theta, x, y) - known + alpha * (theta - w)

                models[k] = world.train(k, w, rate_of(r), gradient=gradient)
                own[k] = known - alpha * (models[k] - w)
            drifts = [theta - w for theta in models.values()]
            h = h - alpha / len(plain_loops.SIZES) * sum(drifts)
            w = mean(models, by_size=False) - h / alpha
            yield Round(vector(w, h), dict(own))

    plain_rounds.check("feddyn", loop, {"alpha": alpha})
