"""AFL: the mixture of clients that has the largest loss, and uniform FedAvg without ascent."""

import batch_norm
import federation
import identities
import numpy as np
import plain
import plain_loops
import plain_rounds
import quadratics
from quadratics import MEANS, START, near, steps_towards, vector


def projected(point):
    """The projection on the simplex: the shift that leaves entries of sum one, by bisection."""
    low, high = point.min() - 1, point.max()
    for _ in range(200):
        shift = (low + high) / 2
        low, high = (shift, high) if np.maximum(point - shift, 0).sum() > 1 else (low, shift)
    return np.maximum(point - high, 0)


def test_closed_form():
    points = np.split(quadratics.POINTS, quadratics.ENDS[:-1])
    gamma, w, mixture = 0.4, START, np.full(3, 1 / 3)
    for _ in range(3):
        losses = np.array([0.5 * np.mean(np.sum((w - x) ** 2, axis=1)) for x in points])
        w = mixture @ steps_towards(w, MEANS)
        mixture = projected(mixture + gamma * losses)
    assert mixture.min() == 0  # the projection cuts
    outcome = quadratics.run("afl", 3, gamma=gamma)
    near(vector(outcome.server.average.params), w)
    near(outcome.server.mixture, mixture)


def test_without_ascent_is_uniform_averaging():
    same = {"data": identities.twins(), "plan": quadratics.sampling.CohortPlan(5, 5)}
    average = identities.run("fedavg", **same).server.params  # all clients have one size
    constant, moving = (identities.run("afl", gamma=gamma, **same).server for gamma in (0.0, 0.3))
    federation.assert_close(constant.average.params, average)
    np.testing.assert_allclose(constant.mixture, 0.2)
    assert federation.differ(moving.average.params, average)
    np.testing.assert_allclose(moving.mixture.sum(), 1, rtol=1e-6)


def test_batch_norm():
    gamma = 0.3

    def one_round(server, clients, ids, found):
        w, mixture = server.average.params, server.mixture.copy()
        trained = [plain.train(w, *plain.examples(k)) for k in ids]
        average = batch_norm.fed_average(server.average, trained, ids, list(mixture[ids]))
        for k in ids:
            mixture[k] += gamma * plain.loss(w, *plain.examples(k), train=False)
        return server._replace(average=average, mixture=projected(mixture))

    batch_norm.check("afl", one_round, gamma=gamma)


def test_plain_loop():
    gamma = 0.2

    def loop(world):
        w, mixture = world.params, np.full(4, 0.25)
        for r, cohort in enumerate(world.cohorts):
            models = np.stack([world.train(k, w, plain_loops.rate_of(r)) for k in cohort])
            losses = np.zeros(4)
            for k in cohort:
                losses[k] = plain_loops.loss(w, world.x[k], world.y[k])
            w = mixture[cohort] @ models / mixture[cohort].sum()
            mixture = projected(mixture + gamma * losses)
            yield plain_loops.Round(plain_loops.vector(w, mixture), {})

    plain_rounds.check("afl", loop, {"gamma": gamma})
