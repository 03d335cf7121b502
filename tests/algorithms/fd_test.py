"""FD: models that learn from the other clients' mean predictions for each class."""

import itertools

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
from plain_loops import CLASSES, Round, rate_of, vector
from quadratics import ENDS, ETA, LABELED, LABELS, LOCAL, PLAN, POINTS, SIZES, near, softmax

from pfljax import core
from pfljax.algorithms import ALGORITHMS
from pfljax.engine import sampling


def class_sums(outputs, y, classes):
    """The sums of the outputs of each class, and the numbers of examples."""
    member = np.eye(classes)[y]
    return member.T @ np.asarray(outputs), member.sum(axis=0)


def teachers(sent, rounds, k):
    """`[C, C]` targets, and which classes have some: the mean over the others who sent last.

    Args:
      sent: `{client: (means [C, C], present [C], round)}`.
      rounds: `[C]`, the last round in which a client had the class.
      k: The client to leave out; None for none.
    """
    classes = len(rounds)
    targets, known = np.zeros((classes, classes)), np.zeros(classes, bool)
    for c in range(classes):
        rows = [
            means[c]
            for client, (means, present, round) in sent.items()
            if present[c] and round == rounds[c] and client != k
        ]
        if rows:
            targets[c], known[c] = np.mean(rows, axis=0), True
    return targets, known


@pytest.mark.parametrize("probabilities, exclude_own", [(True, True), (False, False)])
def test_closed_form(probabilities, exclude_own):
    task, lam = quadratics.linear_classifier(), 0.3
    w, kernel = (np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(task.init(None)))
    models, sent, rounds = [(w, kernel)] * 3, {}, np.full(4, -1)
    for round in range(2):
        now = {}
        for k, (end, n) in enumerate(zip(ENDS, SIZES, strict=True)):
            x, y, (body, head) = POINTS[end - n : end], LABELS[end - n : end], models[k]
            targets, known = teachers(sent, rounds, k if exclude_own else None)
            sums, counts = np.zeros((4, 4)), np.zeros(4)
            for _ in range(quadratics.STEPS):
                z = x @ body
                logits = z @ head
                p, q = softmax(logits), targets[y] * known[y][:, None]
                added, seen = class_sums(p if probabilities else logits, y, 4)
                sums, counts = sums + added, counts + seen
                slope = (p - np.eye(4)[y] + lam * (p * q.sum(axis=1, keepdims=True) - q)) / n
                body, head = body - ETA * x.T @ slope @ head.T, head - ETA * z.T @ slope
            models[k] = (body, head)
            now[k] = (sums / np.maximum(counts, 1)[:, None], counts > 0, round)
        sent |= now
        rounds = np.full(4, round)
    settings = {"lam": lam, "probabilities": probabilities, "exclude_own": exclude_own}
    algorithm = ALGORITHMS["fd"](task, LOCAL, **settings)
    outcome = federation.run(algorithm, data=LABELED, plan=PLAN, rounds=2, score=task, devices=2)
    near(outcome.clients.params["body"]["w"], np.stack([body for body, _ in models]))
    near(outcome.clients.params["head"]["kernel"], np.stack([head for _, head in models]))
    near(outcome.server.total.value, sum(means for means, _, _ in sent.values()))
    near(outcome.server.total.weight, [2, 3, 2, 2])


def test_without_distillation_is_local_training():
    alone = identities.run("local")
    apart, taught = (identities.run("fd", lam=lam) for lam in (0.0, 1.0))
    federation.assert_close(apart.clients.params, alone.clients)
    federation.assert_close(apart.scores, alone.scores)
    assert federation.differ(taught.clients.params, alone.clients)
    other = identities.run("fd", lam=1.0, exclude_own=False)
    assert federation.differ(other.clients.params, taught.clients.params)


def test_a_class_without_other_clients_has_no_term():
    """Each class belongs to one client, so that no client learns from another."""
    data = federation.examples_of(
        np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32),
        np.repeat(np.arange(3), 4).astype(np.int32),
        np.array([4, 4, 4]),
        num_classes=3,
    )
    plan = sampling.CohortPlan(num_clients=3, size=3)
    run = {"data": data, "plan": plan, "rounds": 2}
    alone = identities.run("local", **run).clients
    federation.assert_close(identities.run("fd", **run).clients.params, alone)
    shared = identities.run("fd", **run, exclude_own=False).clients.params
    assert federation.differ(shared, alone)


def test_a_class_that_the_cohort_lacks_keeps_its_predictions():
    algorithm = federation.make("fd")
    server = algorithm.init_server(None, jax.random.key(0))
    context = core.Context(jax.random.key(0), jnp.int32(4), jnp.int32(9))
    first = core.Weighted(jnp.ones((3, 3)), jnp.array([2.0, 1.0, 0.0]))
    server = algorithm.server_update(server, core.Uploads(first, ()), None, context)
    np.testing.assert_array_equal(server.rounds, [4, 4, -1])
    second = core.Weighted(2 * jnp.ones((3, 3)), jnp.array([0.0, 3.0, 1.0]))
    later = context._replace(round=jnp.int32(5))
    server = algorithm.server_update(server, core.Uploads(second, ()), None, later)
    np.testing.assert_array_equal(server.rounds, [4, 5, 5])
    np.testing.assert_array_equal(server.total.value[:, 0], [1, 2, 2])
    np.testing.assert_array_equal(server.total.weight, [2, 3, 1])


def objective_of(outputs_of):
    """The gradient of the objective, and the predictions of the batch."""

    def objective(model, x, y, targets, known, lam):
        outputs = outputs_of(model, x)
        logs = jax.nn.log_softmax(outputs)
        taught = -jnp.mean(known[y] * jnp.sum(targets[y] * logs, axis=1))
        return -jnp.mean(logs[jnp.arange(len(y)), y]) + lam * taught, jnp.exp(logs)

    return jax.jit(jax.grad(objective, has_aux=True))


def totals(sent, rounds):
    """The server's sums of what the clients sent in the last round of each class."""
    value, weight = np.zeros((CLASSES, CLASSES)), np.zeros(CLASSES)
    for c, (means, present, round) in itertools.product(range(CLASSES), sent.values()):
        if present[c] and round == rounds[c]:
            value[c], weight[c] = value[c] + means[c], weight[c] + 1
    return value, weight


def test_batch_norm():
    slope_of = objective_of(lambda model, x: plain.logits(model, x, True))
    history, rounds, number = {}, np.full(3, -1), itertools.count()

    def one_round(server, clients, ids, found):
        round, now, last = next(number), {}, rounds.copy()
        for k in ids:
            (x, y), model = plain.examples(k), clients[k].params
            targets, known = teachers(history, last, k)
            sums, counts = np.zeros((3, 3)), np.zeros(3)
            for _ in range(plain.EPOCHS):
                for u, v in plain.batches(x, y):
                    slope, shared = slope_of(model, u, v, targets, known, 0.8)
                    model = plain.step(model, slope, u)
                    added, seen = class_sums(shared, v, 3)
                    sums, counts = sums + added, counts + seen
            means, present = sums / np.maximum(counts, 1)[:, None], counts > 0
            now[k] = means, present, round
            sent = core.Weighted(means, present.astype(float))
            clients[k] = clients[k]._replace(params=model, sent=sent, round=np.int32(round))
            rounds[present] = round
        history.update(now)
        total = core.Weighted(*totals(history, rounds))
        return server._replace(total=total, rounds=rounds.copy())

    batch_norm.check("fd", one_round, lam=0.8)


def loop(world: plain_loops.World, lam: float):
    slope_of = objective_of(lambda w, x: plain_loops.head(w, plain_loops.features(w, x)))
    thetas, sent, rounds = {}, {}, np.full(CLASSES, -1)
    for r, cohort in enumerate(world.cohorts):
        now, last = {}, rounds.copy()
        for k in cohort:
            theta = thetas.get(k, world.params)
            targets, known = teachers(sent, last, k)
            sums, counts = np.zeros((CLASSES, CLASSES)), np.zeros(CLASSES)
            for x, y in world.batches(k):
                slope, shared = slope_of(theta, x, y, targets, known, lam)
                theta = theta - rate_of(r) * np.asarray(slope)
                added, seen = class_sums(shared, y, CLASSES)
                sums, counts = sums + added, counts + seen
            thetas[k], present = theta, counts > 0
            now[k] = sums / np.maximum(counts, 1)[:, None], present, r
            rounds[present] = r
        sent |= now
        clients = {k: vector(theta, *sent[k]) for k, theta in thetas.items()}
        server = vector(world.params, *totals(sent, rounds), rounds)
        yield Round(server, clients, dict(thetas))


def test_plain_loop():
    plain_rounds.check("fd", lambda world: loop(world, 0.7), {"lam": 0.7})
