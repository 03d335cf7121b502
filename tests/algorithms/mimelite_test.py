"""MimeLite: the server's momentum in the clients' steps, and uniform FedAvg without it."""

import batch_norm
import federation
import identities
import jax
import numpy as np
import plain
import plain_loops
import plain_rounds
import quadratics
from quadratics import ETA, MEANS, START, STEPS, near, vector


def test_closed_form():
    beta, w, m = 0.6, START, np.zeros(4)
    for _ in range(3):
        theta = np.tile(w, (3, 1))
        for _ in range(STEPS):
            theta = theta - ETA * (beta * m + (1 - beta) * (theta - MEANS))
        m = beta * m + (1 - beta) * (w - MEANS).mean(axis=0)
        w = theta.mean(axis=0)
    outcome = quadratics.run("mimelite", 3, beta=beta)
    near(vector(outcome.server.average.params), w)
    near(vector(outcome.server.momentum), m)


def test_without_momentum_is_uniform_averaging():
    same = {"data": identities.twins(), "plan": quadratics.sampling.CohortPlan(5, 5)}
    average = identities.run("fedavg", **same).server.params  # all clients have one size
    without, moving = (identities.run("mimelite", beta=b, **same).server for b in (0.0, 0.9))
    federation.assert_close(without.average.params, average)
    assert federation.differ(moving.average.params, average)


def whole_gradient(w, x, y):
    """The gradient on all examples, batch by batch."""
    slopes = [plain.gradient(plain.loss)(w, u, v) for u, v in plain.batches(x, y)]
    slope = plain.average(slopes, [len(v) for _, v in plain.batches(x, y)])
    return plain.with_statistics(slope, jax.tree.map(np.zeros_like, plain.statistics(w)))


def test_batch_norm():
    beta = 0.6

    def one_round(server, clients, ids, found):
        w, m = server.average.params, server.momentum
        trained, slopes = [], []
        for k in ids:
            x, y = plain.examples(k)
            theta = w
            for _ in range(plain.EPOCHS):
                for u, v in plain.batches(x, y):
                    slope = plain.gradient(plain.loss)(theta, u, v)
                    theta = plain.step(theta, plain.combine((beta, 1 - beta), (m, slope)), u)
            trained.append(theta)
            slopes.append(whole_gradient(w, x, y))
        uniform = np.ones(len(ids)).tolist()
        momentum = plain.combine((beta, 1 - beta), (m, plain.average(slopes, uniform)))
        average = batch_norm.fed_average(server.average, trained, ids, uniform)
        return server._replace(average=average, momentum=momentum)

    batch_norm.check("mimelite", one_round, beta=beta)


def test_plain_loop():
    beta = 0.7

    def loop(world):
        w, m = world.params, np.zeros_like(world.params)
        for r, cohort in enumerate(world.cohorts):

            def gradient(theta, x, y, m=m):
                return beta * m + (1 - beta) * plain_loops.slope(theta, x, y)

            rate = plain_loops.rate_of(r)
            models = {k: world.train(k, w, rate, gradient=gradient) for k in cohort}
            slopes = [plain_loops.slope(w, world.x[k], world.y[k]) for k in cohort]
            m = beta * m + (1 - beta) * np.mean(slopes, axis=0)
            w = plain_loops.mean(models, by_size=False)
            yield plain_loops.Round(plain_loops.vector(w, m), {})

    plain_rounds.check("mimelite", loop, {"beta": beta})
