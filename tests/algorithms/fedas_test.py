"""FedAS: bodies aligned with the clients' own features, and averaged by Fisher traces."""

import batch_norm
import federation
import identities
import jax
import jax.numpy as jnp
import numpy as np
import plain
import plain_loops
import plain_rounds
import pytest
import quadratics
from plain_loops import BODY, HEAD, Round, rate_of, vector
from quadratics import ENDS, ETA, LABELED, LABELS, LOCAL, PLAN, POINTS, SIZES, near, softmax

from pfljax.algorithms import ALGORITHMS
from pfljax.engine import sampling


def slopes_of(body, head, x, hot):
    """The gradients of the mean cross-entropy for body and head."""
    z = x @ body
    logits = (softmax(z @ head) - hot) / len(x)
    return x.T @ logits @ head.T, z.T @ logits


def test_closed_form():
    task, rate = quadratics.linear_classifier(), 0.3
    w, kernel = (np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(task.init(None)))
    models = [(w, kernel)] * 3
    for _ in range(2):
        changes, traces = [], []
        for k, (end, n) in enumerate(zip(ENDS, SIZES, strict=True)):
            x, y, (last, head) = POINTS[end - n : end], LABELS[end - n : end], models[k]
            body = w.copy()
            for c in np.unique(y):
                own = x[y == c]
                gap = own @ w - (own @ last).mean(axis=0)
                body = body - rate * 2 / gap.size * own.T @ gap
            for _ in range(quadratics.STEPS):
                of_body, of_head = slopes_of(body, head, x, np.eye(4)[y])
                body, head = body - ETA * of_body, head - ETA * of_head
            slopes = slopes_of(body, head, x, np.eye(4)[y])
            traces.append(sum(np.sum(slope**2) for slope in slopes))
            models[k] = (body, head)
            changes.append(body - w)
        w = w + np.tensordot(traces, np.stack(changes), 1) / np.sum(traces)
    algorithm = ALGORITHMS["fedas"](task, LOCAL, alignment_rate=rate)
    outcome = federation.run(algorithm, data=LABELED, plan=PLAN, rounds=2, score=task, devices=2)
    near(outcome.server.average.params["body"]["w"], w)
    near(outcome.clients["body"]["w"], np.stack([body for body, _ in models]))
    near(outcome.clients["head"]["kernel"], np.stack([head for _, head in models]))
    rows = zip(ENDS, SIZES, models, strict=True)
    sums = [(POINTS[end - n : end] @ body @ head).sum() for end, n, (body, head) in rows]
    near(outcome.scores["personal"]["test"]["loss"], sums)


def test_of_one_client_without_alignment_is_fedper():
    alone = {"plan": sampling.CohortPlan(num_clients=8, size=1)}
    still, moved = (identities.run("fedas", alignment_rate=rate, **alone) for rate in (0.0, 0.1))
    per = identities.run("fedper", **alone)
    federation.assert_close(still.server, per.server, tolerance=1e-5)
    assert federation.differ(moved.server.average.params, still.server.average.params)
    # In a cohort of several, clients have other weights than in FedPer.
    several = identities.run("fedas", alignment_rate=0.0).server.average.params
    assert federation.differ(several, identities.run("fedper").server.average.params)


def trace_of(batches, slope_of):
    return sum(
        sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(slope_of(x, y))) for x, y in batches
    )


def class_means(z, y):
    """`[C, d]`, zeros for a class without examples."""
    z = np.asarray(z)
    return np.stack([z[y == c].mean(axis=0) if np.any(y == c) else 0 * z[0] for c in range(3)])


def gap_to(own, z, y):
    """The distances to the prototypes, a mean for each class that the batch has."""
    gaps = jnp.mean((z - own[y]) ** 2, axis=1)
    counts = np.bincount(y, minlength=len(own))
    return jnp.sum(gaps / counts[y])


def at_rest(model, x, y):
    """The loss with running statistics."""
    return plain.loss(model, x, y, train=False)


@pytest.mark.parametrize("fisher_batch", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_batch_norm(fisher_batch):
    rate = 0.2
    of_gap = jax.grad(lambda w, x, y, own: gap_to(own, plain.features(w, x, True), y))

    def one_round(server, clients, ids, found):
        bodies, traces = [], []
        for k in ids:
            x, y = plain.examples(k)
            common = server.average.params
            own = class_means(plain.features(clients[k], x, False), y)
            model = {**common, "head": clients[k]["head"]}
            for u, v in plain.batches(x, y, 16):
                model = plain.step(model, of_gap(model, u, v, own), u, "body", rate)
            model = plain.train(model, x, y)

            def slope_of(u, v, model=model):
                slope = plain.gradient(at_rest)(model, u, v)
                return plain.parameters(slope)

            batches = plain.batches(x, y, fisher_batch or plain.BATCH)
            traces.append(trace_of(batches, slope_of))
            bodies.append({"body": model["body"]})
            clients[k] = model
        average = batch_norm.fed_average(server.average, bodies, ids, traces)
        return server._replace(average=average)

    settings = {"alignment_rate": rate, "fisher_batch": fisher_batch}
    batch_norm.check("fedas", one_round, **settings)


def loop(world: plain_loops.World, rate: float, epochs: int):
    of_gap = jax.grad(lambda w, x, y, own: gap_to(own, plain_loops.features(w, x), y))
    body, models = world.params[BODY], {}
    for r, cohort in enumerate(world.cohorts):
        changes, traces = [], []
        for k in cohort:
            last = models.get(k, vector(body, world.params[HEAD]))
            own = class_means(plain_loops.features(last, world.x[k]), world.y[k])
            theta = vector(body, last[HEAD])
            for x, y in world.batches(k, epochs, batch=5):
                slope = np.asarray(of_gap(theta, x, y, own))
                theta[BODY] = theta[BODY] - rate * plain_loops.DECAY**r * slope[BODY]
            models[k] = world.train(k, theta, rate_of(r))
            slopes = [plain_loops.slope(models[k], x, y) for x, y in world.batches(k, 1)]
            traces.append(sum(np.sum(slope**2) for slope in slopes))
            changes.append(models[k][BODY] - body)
        body = body + np.dot(traces, changes) / np.sum(traces)
        yield Round(vector(body, world.params[HEAD]), dict(models), dict(models))


def test_plain_loop():
    settings = {"alignment_rate": 0.2, "alignment_batch": 5, "alignment_epochs": 2}
    plain_rounds.check("fedas", lambda world: loop(world, 0.2, 2), settings)
