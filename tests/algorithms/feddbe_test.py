"""FedDBE: biases of features, and a mean of features that the first round computes."""

import batch_norm
import federation
import identities
import jax
import jax.numpy as jnp
import numpy as np
import plain
import plain_loops
import plain_rounds
import quadratics
from plain_loops import FEATURES, Round, mean, rate_of, vector
from quadratics import ENDS, ETA, LABELED, LABELS, LOCAL, PLAN, POINTS, SHARE, SIZES, near, softmax

from pfljax.algorithms import ALGORITHMS


def test_closed_form():
    task, kappa, momentum = quadratics.linear_classifier(), 0.8, 0.3
    w, kernel = (np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(task.init(None)))
    biases, m = np.zeros((3, 2)), np.zeros(2)
    for round in range(3):
        models, means = [], []
        for k, (end, n) in enumerate(zip(ENDS, SIZES, strict=True)):
            x, hot = POINTS[end - n : end], np.eye(4)[LABELS[end - n : end]]
            body, head, r, later = w, kernel, np.zeros(2), round > 0
            for _ in range(quadratics.STEPS):
                z = x @ body
                r = (1 - momentum) * r + momentum * z.mean(axis=0)
                logits = (softmax((z + biases[k]) @ head) - hot) / n
                pull = later * kappa / 2 * momentum * np.tile(r - m, (n, 1)) / n
                body, head, biases[k] = (
                    body - ETA * x.T @ (logits @ head.T + pull),
                    head - ETA * (z + biases[k]).T @ logits,
                    biases[k] - later * ETA * (logits @ head.T).sum(axis=0),
                )
            models.append((body, head))
            means.append(r)
        if round == 0:
            m = SHARE @ means
        else:
            parts = zip(*models, strict=True)
            w, kernel = (np.tensordot(SHARE, np.stack(part), 1) for part in parts)
    algorithm = ALGORITHMS["feddbe"](task, LOCAL, kappa=kappa, momentum=momentum)
    outcome = federation.run(algorithm, data=LABELED, plan=PLAN, rounds=3, score=task, devices=2)
    near(outcome.server.mean, m)
    near(outcome.server.average.params["body"]["w"], w)
    near(outcome.server.average.params["head"]["kernel"], kernel)
    near(outcome.clients, biases)
    rows = zip(ENDS, SIZES, biases, strict=True)
    shifted = [((POINTS[end - n : end] @ w + bias) @ kernel).sum() for end, n, bias in rows]
    near(outcome.scores["personal"]["test"]["loss"], shifted)


def test_the_first_round_computes_the_mean_only():
    first, later = (identities.run("feddbe", rounds=rounds) for rounds in (1, 2))
    start = identities.run("feddbe", rounds=1, kappa=0.0).server
    assert first.server.known and np.all(first.clients == 0)
    federation.assert_close(first.server.average, start.average)
    federation.assert_close(later.server.mean, first.server.mean)
    assert federation.differ(later.server.average.params, first.server.average.params)
    assert federation.differ(later.clients, first.clients)
    assert federation.differ(first.server.mean, np.zeros(4))


def test_the_distance_to_the_mean_has_an_effect():
    with_it, without = (identities.run("feddbe", rounds=2, kappa=kappa) for kappa in (1.0, 0.0))
    assert federation.differ(with_it.server.average.params, without.server.average.params)
    assert federation.differ(with_it.clients, without.clients)


def objective_of(features, head, entropies):
    """The objective of a step, and the running mean of the features after it."""

    def objective(both, r, x, y, m, kappa, momentum):
        z = features(both["model"], x)
        r = (1 - momentum) * r + momentum * jnp.mean(z, axis=0)
        losses = entropies(head(both["model"], z + both["bias"]), y)
        return jnp.mean(losses) + kappa / 2 * jnp.mean((r - m) ** 2), r

    return jax.jit(jax.grad(objective, has_aux=True))


def test_batch_norm():
    kappa, momentum = 1.0, 0.5
    slope_of = objective_of(lambda w, x: plain.features(w, x, True), plain.head, plain.entropies)

    def one_round(server, clients, ids, found):
        trained, means, known = [], [], bool(server.known)
        for k in ids:
            x, y = plain.examples(k)
            both, r = {"model": server.average.params, "bias": clients[k]}, np.zeros(4)
            for _ in range(plain.EPOCHS):
                for u, v in plain.batches(x, y):
                    pull = (server.mean, known * kappa, momentum)
                    slope, r = slope_of(both, r, u, v, *pull)
                    bias = both["bias"] - known * plain.RATE * slope["bias"]
                    both = {"model": plain.step(both["model"], slope["model"], u), "bias": bias}
            clients[k] = both["bias"]
            trained.append(both["model"])
            means.append(r)
        if known:
            return server._replace(average=batch_norm.fed_average(server.average, trained, ids))
        return server._replace(mean=plain.average(means, plain.sizes(ids)), known=np.array(True))

    batch_norm.check("feddbe", one_round, kappa=kappa, momentum=momentum)


def loop(world: plain_loops.World, kappa: float, momentum: float):
    def entropies(outputs, y):
        return -jax.nn.log_softmax(outputs)[jnp.arange(len(y)), y]

    slope_of = objective_of(plain_loops.features, plain_loops.head, entropies)
    w, m, biases = world.params, np.zeros(FEATURES), {}
    for r, cohort in enumerate(world.cohorts):
        models, means = {}, {}
        for k in cohort:
            theta, bias = w, biases.get(k, np.zeros(FEATURES))
            running = np.zeros(FEATURES)
            for x, y in world.batches(k):
                both = {"model": theta, "bias": bias}
                slope, running = slope_of(both, running, x, y, m, kappa * (r > 0), momentum)
                theta = theta - rate_of(r) * slope["model"]
                bias = bias - rate_of(r) * (r > 0) * slope["bias"]
            models[k], means[k], biases[k] = theta, np.asarray(running), np.asarray(bias)
        if r == 0:
            m = mean(means)
        else:
            w = mean(models)
        yield Round(vector(w, m, True), dict(biases), {k: vector(b, w) for k, b in biases.items()})


def test_plain_loop():
    settings = {"kappa": 0.7, "momentum": 0.4}
    plain_rounds.check("feddbe", lambda world: loop(world, **settings), settings)
