"""GPFL: global and personalized features by a conditional valve, and common class embeddings."""

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
from plain_loops import BODY, HEAD, Round, rate_of, vector
from quadratics import ENDS, ETA, LABELED, LABELS, LOCAL, PLAN, POINTS, SHARE, SIZES, near

from pfljax.algorithms import ALGORITHMS
from pfljax.core import streams
from pfljax.engine import sampling


def through_valve(valve, z, q):
    """relu(z (gamma(q) + 1) + beta(q))"""

    def part(layer):
        hidden = jax.nn.relu(q @ layer["linear"]["kernel"] + layer["linear"]["bias"])
        normal = (hidden - jnp.mean(hidden)) / jnp.sqrt(jnp.var(hidden) + 1e-5)
        return normal * layer["norm"]["scale"] + layer["norm"]["bias"]

    return jax.nn.relu(z * (part(valve["gamma"]) + 1) + part(valve["beta"]))


def directions(rows):
    """Rows of length 1, and of length 0 where they are zero."""
    squares = jnp.sum(rows**2, axis=1, keepdims=True)
    return rows / jnp.sqrt(jnp.where(squares > 0, squares, 1))


def objective_of(features, head):
    """The gradient of the method's objective for `models`: model, embedding and valve."""

    def entropy(outputs, y):
        return -jnp.mean(jax.nn.log_softmax(outputs)[jnp.arange(len(y)), y])

    def objective(models, x, y, conditions, received, lam, mu):
        z, embedding = features(models["model"], x), models["embedding"]
        z_g, z_p = (through_valve(models["valve"], z, q) for q in conditions)
        squares = jnp.sum((z_g - received[y]) ** 2)
        weights = jax.tree.leaves((embedding, models["valve"]))
        return (
            entropy(head(models["model"], z_p), y)
            + entropy(directions(z_g) @ directions(embedding).T, y)
            + lam * jnp.sqrt(squares)
            + mu / 2 * sum(jnp.sum(leaf**2) for leaf in weights)
        )

    return jax.jit(jax.grad(objective))


def conditions_of(embedding, labels):
    counts = np.bincount(labels, minlength=len(embedding))
    return np.asarray(embedding).mean(axis=0), counts @ np.asarray(embedding) / counts.sum()


def test_closed_form():
    task, lam, mu = quadratics.linear_classifier(), 0.4, 0.05
    algorithm = ALGORITHMS["gpfl"](task, LOCAL, lam=lam, mu=mu)
    key = streams.key_of(jax.random.key(0), streams.SERVER_INIT)
    start = algorithm.init_server(None, key)
    shared, head = start.average.params, start.initial_head["head"]["kernel"]
    slope_of = objective_of(
        lambda model, x: x @ model["body"]["w"], lambda model, z: z @ model["head"]["kernel"]
    )
    heads, conditions = [head] * 3, [(np.zeros(2), np.zeros(2))] * 3
    for _ in range(2):
        sent = []
        for k, (end, n) in enumerate(zip(ENDS, SIZES, strict=True)):
            model = {**shared["model"], "head": {"kernel": heads[k]}}
            models = {**shared, "model": model}
            x, y = POINTS[end - n : end], LABELS[end - n : end]
            for _ in range(quadratics.STEPS):
                slope = slope_of(models, x, y, conditions[k], shared["embedding"], lam, mu)
                models = plain.axpy(-ETA, slope, models)
            heads[k] = models["model"]["head"]["kernel"]
            conditions[k] = conditions_of(models["embedding"], y)
            sent.append({**models, "model": {"body": models["model"]["body"]}})
        shared = plain.average(sent, SHARE)
    outcome = federation.run(algorithm, data=LABELED, plan=PLAN, rounds=2, score=task, devices=2)
    jax.tree.map(near, outcome.server.average.params, shared)
    near(outcome.clients.head["head"]["kernel"], np.stack(heads))
    for k, (generic, personal) in enumerate(conditions):
        near(outcome.clients.generic[k], generic)
        near(outcome.clients.personal[k], personal)


def test_each_term_has_an_effect():
    whole = identities.run("gpfl", lam=0.1, mu=0.1)
    for other in ({"lam": 0.0, "mu": 0.1}, {"lam": 0.1, "mu": 0.0}):
        without = identities.run("gpfl", **other)
        assert federation.differ(without.server.average.params, whole.server.average.params)
        assert federation.differ(without.clients, whole.clients)


def test_at_equal_labels_both_conditions_are_equal():
    """The first client has as many examples of each class, and the second has not."""
    data = federation.examples_of(
        np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32),
        np.array([0, 1, 2, 0, 1, 2, 0, 0, 0, 1, 1, 1], np.int32),
        np.array([6, 6]),
        num_classes=3,
    )
    plan = sampling.CohortPlan(num_clients=2, size=2)
    clients = identities.run("gpfl", data=data, plan=plan, rounds=1).clients
    np.testing.assert_allclose(clients.generic[0], clients.personal[0], rtol=1e-5, atol=1e-6)
    assert federation.differ(clients.generic[1], clients.personal[1])


def test_batch_norm():
    lam, mu = 0.3, 0.05
    slope_of = objective_of(lambda w, x: plain.features(w, x, True), plain.head)

    def one_round(server, clients, ids, found):
        shared, trained = server.average.params, []
        for k in ids:
            x, y = plain.examples(k)
            conditions = (clients[k].generic, clients[k].personal)
            models = {**shared, "model": {**shared["model"], **clients[k].head}}
            for _ in range(plain.EPOCHS):
                for u, v in plain.batches(x, y):
                    slope = slope_of(models, u, v, conditions, shared["embedding"], lam, mu)
                    moved = plain.axpy(-plain.RATE, slope, models)
                    models = {**moved, "model": plain.step(models["model"], slope["model"], u)}
            head = {"head": models["model"]["head"]}
            clients[k] = clients[k]._replace(head=head)
            generic, personal = conditions_of(models["embedding"], y)
            clients[k] = clients[k]._replace(generic=generic, personal=personal)
            trained.append({**models, "model": {"body": models["model"]["body"]}})
        return server._replace(average=batch_norm.fed_average(server.average, trained, ids))

    batch_norm.check("gpfl", one_round, lam=lam, mu=mu)


def loop(world: plain_loops.World, lam: float, mu: float):
    slope_of = objective_of(plain_loops.features, plain_loops.head)
    drawn = world.server.average.params
    shared = {"embedding": drawn["embedding"], "model": world.params[BODY], "valve": drawn["valve"]}
    zero = np.zeros(plain_loops.FEATURES)
    states = {}
    for r, cohort in enumerate(world.cohorts):
        sent = []
        for k in cohort:
            head, *conditions = states.get(k, (world.params[HEAD], zero, zero))
            models = {**shared, "model": vector(shared["model"], head)}
            for x, y in world.batches(k):
                slope = slope_of(models, x, y, tuple(conditions), shared["embedding"], lam, mu)
                models = plain.axpy(-rate_of(r), slope, models)
            generic, personal = conditions_of(models["embedding"], world.y[k])
            theta = np.asarray(models["model"])
            states[k] = theta[HEAD], generic, personal
            sent.append({**models, "model": theta[BODY]})
        sizes = [plain_loops.SIZES[k] for k in cohort]
        shared = plain.average(sent, sizes)
        clients = {k: vector(*state) for k, state in states.items()}
        valve = plain_loops.flat(shared["valve"])
        deployed = {
            k: vector(personal, shared["model"], head, valve)
            for k, (head, _, personal) in states.items()
        }
        server = vector(shared["embedding"], shared["model"], valve, world.params[HEAD])
        yield Round(server, clients, deployed)


def test_plain_loop():
    settings = {"lam": 0.3, "mu": 0.05}
    plain_rounds.check("gpfl", lambda world: loop(world, **settings), settings)
