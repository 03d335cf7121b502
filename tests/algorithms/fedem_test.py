"""FedEM: mixtures of common learners, and FedAvg with one of them."""

import batch_norm
import federation
import identities
import jax
import jax.numpy as jnp
import numpy as np
import optax
import plain
import quadratics
from quadratics import ENDS, ETA, POINTS, SHARE, SIZES, near, steps_towards, vector

from pfljax import core
from pfljax.algorithms import ALGORITHMS


def test_closed_form():
    learners, rounds = 3, 2
    own = [POINTS[e - n : e] for e, n in zip(ENDS, SIZES, strict=True)]

    initial = quadratics.run_from_random_weights("fedem", eta=0.0, learners=learners)
    theta = vector(initial.server.average.params)
    assert np.ptp(theta, axis=0).min() > 0.1
    pi = np.full((3, learners), 1 / learners)
    for _ in range(rounds):
        total = np.zeros_like(theta)
        for k, x in enumerate(own):
            losses = 0.5 * ((x[:, None] - theta) ** 2).sum(axis=-1)
            q = pi[k] * np.exp(-losses)
            q = q / q.sum(axis=1, keepdims=True)
            pi[k] = q.mean(axis=0)
            target = q.T @ x / q.sum(axis=0)[:, None]
            rate = ETA * pi[k][:, None]  # the Hessian of a learner's loss is its share of q
            total += SHARE[k] * steps_towards(theta, target, rate=rate)
        theta = total
    outcome = quadratics.run_from_random_weights("fedem", rounds=rounds, learners=learners)
    near(vector(outcome.server.average.params), theta)
    near(outcome.clients, pi)
    logs = []
    for x, weights in zip(own, pi, strict=True):
        scores = np.exp(x[:, None] - theta)
        logs.append(np.log(weights @ (scores / scores.sum(axis=-1, keepdims=True))).sum())
    near(outcome.scores["personal"]["test"]["loss"], logs)


def test_with_one_learner_is_fedavg():
    fixed = federation.task().init(jax.random.key(7))
    alike = federation.task()._replace(init=lambda key: fixed)
    average, single = (
        identities.run("fedavg", task=alike),
        identities.run("fedem", task=alike, learners=1),
    )
    learner = jax.tree.map(lambda leaf: leaf[0], single.server.average.params)
    federation.assert_close(learner, average.server.params)
    federation.assert_close(single.scores["personal"], average.scores["personal"], 1e-5)
    assert np.all(single.clients == 1)
    # Learners that begin alike are FedAvg's model with a third of its steps, and stay alike.
    third = federation.local_training(shuffle=False, optimizer=optax.sgd(0.1 / 3))
    slow = identities.run("fedavg", task=alike, local=third)
    same = identities.run("fedem", task=alike, learners=3)
    for number in range(3):
        learner = jax.tree.map(lambda leaf, n=number: leaf[n], same.server.average.params)
        federation.assert_close(learner, slow.server.params, 1e-5)
    apart = identities.run("fedem", learners=3)
    assert federation.differ(apart.clients, same.clients)
    assert federation.differ(apart.scores["personal"], average.scores["personal"])


def test_an_unseen_client_learns_how_to_mix():
    outcome = identities.run("fedem")
    uniform = np.full(3, 1 / 3, np.float32)
    np.testing.assert_array_equal(outcome.clients[8], uniform)  # it never took part
    algorithm = ALGORITHMS["fedem"](federation.task(), federation.local_training())
    data = jax.tree.map(jnp.asarray, federation.examples()).of_client(jnp.int32(8))
    context = core.Context(jax.random.key(1), jnp.int32(0), jnp.int32(1), jnp.int32(8))
    server = jax.tree.map(jnp.asarray, outcome.server)
    joined = algorithm.client_update(server, jnp.asarray(uniform), data, context).state
    np.testing.assert_allclose(jnp.sum(joined), 1, rtol=1e-6)
    assert federation.differ(joined, uniform, least=1e-2)


def test_batch_norm():
    learners = 2

    def rows(model):
        return [jax.tree.map(lambda leaf, m=m: leaf[m], model) for m in range(learners)]

    def responsibilities(received, mixture, x, y):
        judged = jnp.stack([plain.losses(model, x, y, train=False) for model in received])
        return jax.nn.softmax(jnp.log(mixture)[:, None] - judged, axis=0)

    def objective(model, x, y, received, mixture, m):
        return jnp.mean(responsibilities(received, mixture, x, y)[m] * plain.losses(model, x, y))

    def one_round(server, clients, ids, found):
        received = rows(server.average.params)
        trained = [[] for _ in received]
        for k in ids:
            x, y = plain.examples(k)
            for m, model in enumerate(received):
                given = (received, clients[k], m)
                trained[m].append(plain.train(model, x, y, objective, *given))
            clients[k] = jnp.mean(responsibilities(received, clients[k], x, y), axis=1)
        means = [plain.average(of_one, plain.sizes(ids)) for of_one in trained]
        stacked = jax.tree.map(lambda *leaf: jnp.stack(leaf), *means)
        return server._replace(average=server.average._replace(params=stacked))

    batch_norm.check("fedem", one_round, learners=learners)
