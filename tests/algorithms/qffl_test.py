"""q-FFL: clients with larger losses have more weight, and uniform FedAvg without fairness."""

import batch_norm
import federation
import identities
import jax
import numpy as np
import plain
import plain_loops
import plain_rounds
import quadratics
from quadratics import ETA, MEANS, START, near, steps_towards, vector


def q_fedavg(w, thetas, losses, q, rate):
    """Algorithm 2 of the paper, for vectors."""
    updates = (w - np.stack(thetas)) / rate
    losses = np.asarray(losses)
    factors = q * losses ** (q - 1) * np.sum(updates**2, axis=1) + losses**q / rate
    return w - losses**q @ updates / factors.sum()


def test_closed_form():
    points = np.split(quadratics.POINTS, quadratics.ENDS[:-1])
    q, w = 1.5, START
    for _ in range(2):
        losses = [0.5 * np.mean(np.sum((w - x) ** 2, axis=1)) for x in points]
        w = q_fedavg(w, steps_towards(w, MEANS), losses, q, ETA)
    near(vector(quadratics.run("qffl", 2, q=q).server.params), w)


def test_without_fairness_is_uniform_averaging():
    same = {"data": identities.twins(), "plan": quadratics.sampling.CohortPlan(5, 5)}
    average = identities.run("fedavg", **same).server.params  # all clients have one size
    federation.assert_close(identities.run("qffl", q=0.0, **same).server.params, average)
    assert federation.differ(identities.run("qffl", q=1.0, **same).server.params, average)


def test_weights_by_size():
    average = identities.run("fedavg").server.params
    by_size = [identities.run("qffl", q=q, weight_by_size=True).server.params for q in (0.0, 2.0)]
    federation.assert_close(by_size[0], average)
    assert federation.differ(by_size[1], average)
    assert federation.differ(identities.run("qffl", q=0.0).server.params, average)


def test_more_fairness_lowers_the_largest_loss():
    def worst(q):
        model = vector(quadratics.run("qffl", 60, q=q).server.params)
        points = np.split(quadratics.POINTS, quadratics.ENDS[:-1])
        return max(np.mean(np.sum((model - x) ** 2, axis=1)) for x in points)

    assert worst(2.0) < worst(0.0)


def test_a_loss_of_zero_gives_finite_numbers():
    points = np.zeros_like(quadratics.POINTS)  # where the start is
    data = federation.examples_of(
        points, np.zeros(len(points), np.int32), quadratics.SIZES, num_classes=1
    )
    local, task = quadratics.LOCAL, quadratics.quadratic()
    for q in (0.0, 0.5, 3.0):
        method = quadratics.ALGORITHMS["qffl"](task, local, q=q)
        found = federation.run(method, data=data, plan=quadratics.PLAN, rounds=1)
        near(vector(found.server.params), START)


def test_batch_norm():
    q = 0.7

    def one_round(server, clients, ids, found):
        w = server.params
        losses = np.array([plain.loss(w, *plain.examples(k), train=False) for k in ids])
        trained = [plain.train(w, *plain.examples(k)) for k in ids]
        factors = []
        for theta, loss in zip(trained, losses, strict=True):
            gaps = jax.tree.map(
                lambda a, b: np.sum((a - b) ** 2), plain.parameters(theta), plain.parameters(w)
            )
            slope = sum(jax.tree.leaves(gaps)) / plain.RATE**2
            factors.append(q * loss ** (q - 1) * slope + loss**q / plain.RATE)
        weights = losses**q / plain.RATE / sum(factors)
        moved = plain.combine((1 - weights.sum(), *weights), (w, *trained))
        means = plain.statistics(plain.average(trained, losses**q))
        return server._replace(params=plain.with_statistics(moved, means))

    batch_norm.check("qffl", one_round, q=q)


def test_plain_loop():
    q = 1.3

    def loop(world):
        w = world.params
        for r, cohort in enumerate(world.cohorts):
            rate = plain_loops.rate_of(r)
            losses = [float(plain_loops.loss(w, world.x[k], world.y[k])) for k in cohort]
            w = q_fedavg(w, [world.train(k, w, rate) for k in cohort], losses, q, rate)
            yield plain_loops.Round(w, {})

    plain_rounds.check("qffl", loop, {"q": q})
