"""FedAsync: models of late clients are mixed in, and uniform FedAvg without delay."""

import batch_norm
import delays
import federation
import identities
import jax
import numpy as np
import plain
import plain_loops
import plain_rounds
import quadratics
from quadratics import ETA, MEANS, START, near, steps_towards, vector


def test_closed_form(monkeypatch):
    delays.follow(monkeypatch)
    alpha, mu, versions = 0.6, 0.5, [START]
    for t in range(4):
        late = np.minimum(delays.TABLE[t, :3], t)
        start = np.stack([versions[t - s] for s in late])
        thetas = steps_towards(start, (MEANS + mu * start) / (1 + mu), rate=ETA * (1 + mu))
        weights = alpha * (1 + late[:, None]) ** -0.5
        w = versions[-1]
        versions.append(w + (weights * (thetas - w)).mean(axis=0))
    outcome = quadratics.run("fedasync", 4, alpha=alpha, mu=mu)
    near(vector(outcome.server.method.params), versions[-1])


def test_without_delay_is_uniform_averaging():
    same = {"data": identities.twins(), "plan": quadratics.sampling.CohortPlan(5, 5)}
    average = identities.run("fedavg", **same).server.params  # all clients have one size
    whole, half, late = (
        identities.run("fedasync", alpha=alpha, mu=0.0, delay=delay, **same).server.method.params
        for alpha, delay in ((1.0, 0.0), (0.5, 0.0), (1.0, 3.0))
    )
    federation.assert_close(whole, average)
    assert federation.differ(half, average) and federation.differ(late, average)
    pulled = identities.run("fedasync", alpha=1.0, mu=1.0, delay=0.0, **same)
    assert federation.differ(pulled.server.method.params, average)


def test_batch_norm(monkeypatch):
    table = np.arange(18).reshape(2, 9) % 2
    delays.follow(monkeypatch, table)

    def one_round(server, clients, ids, found):
        number, w = int(server.number), server.method.params
        mixed = w
        for k in ids:
            late = min(int(table[number, k]), number)
            old = jax.tree.map(lambda leaf, v=number - late: leaf[v], server.versions.params)
            theta = plain.train(old, *plain.examples(k), plain.pulled, old, 0.5)
            step = 0.6 * (1 + late) ** -0.5 / len(ids)
            mixed = plain.combine((1, step, -step), (mixed, theta, w))
        method = server.method._replace(params=mixed)
        versions = jax.tree.map(lambda rows, new: np.asarray(rows).copy(), server.versions, method)
        jax.tree.map(lambda rows, new: rows.__setitem__((number + 1) % 3, new), versions, method)
        return server._replace(method=method, versions=versions, number=number + 1)

    batch_norm.check("fedasync", one_round, mu=0.5, max_staleness=2)


def test_plain_loop(monkeypatch):
    delays.follow(monkeypatch)
    alpha, mu = 0.7, 0.4

    def loop(world):
        versions = [world.params]
        for r, cohort in enumerate(world.cohorts):
            w, change = versions[-1], 0
            for k in cohort:
                late = min(delays.TABLE[r, k], r)
                start = versions[r - late]

                def gradient(theta, x, y, start=start):
                    return plain_loops.slope(theta, x, y) + mu * (theta - start)

                theta = world.train(k, start, plain_loops.rate_of(r), gradient=gradient)
                change = change + alpha * (1 + late) ** -0.5 * (theta - w) / len(cohort)
            versions.append(w + change)
            yield plain_loops.Round(versions[-1], {})

    plain_rounds.check(
        "fedasync", loop, {"alpha": alpha, "mu": mu}, lambda server: server.method.params
    )
