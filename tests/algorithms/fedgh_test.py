"""FedGH: private bodies, and a head that the server trains on class means."""

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
from plain_loops import BODY, CLASSES, HEAD, Round, rate_of, vector
from quadratics import ENDS, ETA, LABELED, LABELS, LOCAL, PLAN, POINTS, SIZES, near, softmax

from pfljax import core
from pfljax.algorithms import ALGORITHMS
from pfljax.algorithms.fedgh import as_examples
from pfljax.ops.prototypes import Prototypes


def test_closed_form():
    task, rate, epochs = quadratics.linear_classifier(), 0.5, 2
    w, kernel = (np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(task.init(None)))
    bodies = [w] * 3
    for _ in range(2):
        means, classes = [], []
        for k, (end, n) in enumerate(zip(ENDS, SIZES, strict=True)):
            x, y, head = POINTS[end - n : end], LABELS[end - n : end], kernel
            for _ in range(quadratics.STEPS):
                z = x @ bodies[k]
                logits = (softmax(z @ head) - np.eye(4)[y]) / n
                bodies[k], head = (
                    bodies[k] - ETA * x.T @ logits @ head.T,
                    head - ETA * z.T @ logits,
                )
            for c in np.unique(y):
                means.append((x @ bodies[k])[y == c].mean(axis=0))
                classes.append(c)
        z, hot = np.stack(means), np.eye(4)[classes]
        for _ in range(epochs):
            kernel = kernel - rate * z.T @ (softmax(z @ kernel) - hot) / len(z)
    algorithm = ALGORITHMS["fedgh"](
        task, LOCAL, server_rate=rate, server_batch=20, server_epochs=epochs
    )
    outcome = federation.run(algorithm, data=LABELED, plan=PLAN, rounds=2, score=task, devices=2)
    near(outcome.server.head["head"]["kernel"], kernel)
    near(outcome.clients["body"]["w"], np.stack(bodies))
    rows = zip(ENDS, SIZES, bodies, strict=True)
    sums = [(POINTS[end - n : end] @ body @ kernel).sum() for end, n, body in rows]
    near(outcome.scores["personal"]["test"]["loss"], sums)


def test_the_head_is_that_of_the_server():
    """Without a rate the head is the initial one; local training moves only what is discarded."""
    still, moved = (identities.run("fedgh", server_rate=rate) for rate in (0.0, 0.5))
    alone = identities.run("local", rounds=1)
    start = identities.run("fedgh", rounds=1, server_rate=0.0)
    federation.assert_close(still.server.head, start.server.head)
    assert federation.differ(moved.server.head, still.server.head)
    assert federation.differ(moved.clients, still.clients)
    federation.assert_close(start.clients["body"], alone.clients["body"])
    assert federation.differ(still.clients["body"], identities.run("local").clients["body"])


def test_class_means_are_ordered_by_client_and_class():
    means = np.arange(4 * 3 * 2, dtype=np.float32).reshape(4, 3, 2)
    seen = np.array([[1, 0, 1], [1, 1, 1], [0, 1, 0], [1, 1, 1]], bool)
    cohort = core.Cohort(jnp.array([5, 2, 3, -1]), jnp.array([9, 9, 9, 0]), 8)
    data = as_examples(Prototypes(jnp.asarray(means), jnp.asarray(seen)), cohort)
    batch = data.take(jnp.arange(12))
    np.testing.assert_array_equal(batch.mask, np.arange(12) < 6)
    rows = [(1, 0), (1, 1), (1, 2), (2, 1), (0, 0), (0, 2)]
    np.testing.assert_array_equal(batch.targets[:6], [c for _, c in rows])
    np.testing.assert_array_equal(batch.inputs[:6], [means[k, c] for k, c in rows])


def trained_head(head, means, rate, loss):
    """Steps on one class mean at a time."""
    slope = jax.jit(jax.grad(loss))
    for z, c in means:
        head = jax.tree.map(lambda a, g: a - rate * g, head, slope(head, z, c))
    return head


def test_batch_norm():
    def loss(head, z, c):
        return -jax.nn.log_softmax(plain.head({"head": head}, z))[c]

    def one_round(server, clients, ids, found):
        means = []
        for k in ids:
            x, y = plain.examples(k)
            model = plain.train({**clients[k], **server.head}, x, y)
            clients[k] = {"body": model["body"]}
            z = np.asarray(plain.features(model, x, False))
            means += [(z[y == c].mean(axis=0), c) for c in np.unique(y)]
        return server._replace(head={"head": trained_head(server.head["head"], means, 0.5, loss)})

    batch_norm.check("fedgh", one_round, server_rate=0.5)


def loop(world: plain_loops.World, rate: float):
    def loss(head, z, c):
        theta = jnp.concatenate([jnp.zeros(24), head])
        return -jax.nn.log_softmax(plain_loops.head(theta, z))[c]

    head, bodies = world.params[HEAD], {}
    for r, cohort in enumerate(world.cohorts):
        means = []
        for k in sorted(cohort):
            start = vector(bodies.get(k, world.params[BODY]), head)
            theta = world.train(k, start, rate_of(r))
            bodies[k] = theta[BODY]
            z, y = np.asarray(plain_loops.features(theta, world.x[k])), world.y[k]
            means += [(z[y == c].mean(axis=0), c) for c in range(CLASSES) if np.any(y == c)]
        head = trained_head(head, means, rate, loss)
        deployed = {k: vector(own, head) for k, own in bodies.items()}
        yield Round(vector(head, world.params[BODY]), dict(bodies), deployed)


def test_plain_loop():
    plain_rounds.check("fedgh", lambda world: loop(world, 0.4), {"server_rate": 0.4})
