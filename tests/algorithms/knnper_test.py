"""kNN-Per: the global model and a client's nearest examples, and FedAvg without these."""

import functools

import batch_norm
import federation
import identities
import jax
import jax.numpy as jnp
import numpy as np
import optax
import plain
import plain_loops
import plain_rounds
import quadratics
from quadratics import ENDS, LABELED, LABELS, POINTS, SIZES, near, softmax
from sklearn.neighbors import KNeighborsRegressor

from pfljax import core, models, tasks
from pfljax.algorithms import ALGORITHMS
from pfljax.algorithms.knnper import neighbours
from pfljax.ops.datastore import Datastore


def neighbours_of(z, known, labels, k, scale, classes):
    """Weights of the classes for one example, in loops."""
    order = sorted(range(len(known)), key=lambda i: np.linalg.norm(z - known[i]))[:k]
    weights = np.zeros(classes)
    for i in order:
        weights[labels[i]] += np.exp(-np.linalg.norm(z - known[i]) / scale)
    return weights / weights.sum()


def test_closed_form():
    k, lam, scale, task = 3, 0.3, 0.7, quadratics.linear_classifier()
    method = ALGORITHMS["knnper"](task, quadratics.LOCAL, k=k, lam=lam, scale=scale)
    outcome = federation.run(
        method, data=LABELED, plan=quadratics.PLAN, rounds=2, score=task, devices=2
    )
    average = ALGORITHMS["fedavg"](task, quadratics.LOCAL)
    w = federation.run(average, data=LABELED, plan=quadratics.PLAN, rounds=2).server.params
    federation.assert_close(outcome.server.params, w)
    logs = []
    for end, size in zip(ENDS, SIZES, strict=True):
        rows = slice(end - size, end)
        z = POINTS[rows] @ w["body"]["w"]
        near_ones = [neighbours_of(x, z, LABELS[rows], k, scale, 4) for x in z]
        mixture = lam * np.stack(near_ones) + (1 - lam) * softmax(z @ w["head"]["kernel"])
        logs.append(np.log(mixture).sum())
    near(outcome.scores["personal"]["test"]["loss"], logs)


def test_the_nearest_examples_of_a_client():
    draw = np.random.default_rng(0)
    known, z = draw.normal(size=(9, 3)), draw.normal(size=(5, 3))
    labels, mask = draw.integers(0, 4, 9), np.arange(9) < 6
    one_hot = functools.partial(jax.nn.one_hot, num_classes=4)
    with jax.enable_x64(True):
        for k in (1, 4, 20):
            store = Datastore(*map(jnp.asarray, (known, labels, mask)))
            found = neighbours(store, jnp.asarray(z), k, 0.5, one_hot)
            wanted = [neighbours_of(x, known[:6], labels, k, 0.5, 4) for x in z]
            np.testing.assert_allclose(found, wanted, rtol=1e-12)
        empty = store._replace(mask=jnp.zeros(9, bool))
        np.testing.assert_array_equal(neighbours(empty, jnp.asarray(z), 3, 0.5, one_hot), 0)
        # At a great distance all weights would underflow; the nearest still counts.
        far = neighbours(store, 1e6 + jnp.asarray(z), 1, 0.5, one_hot)
        np.testing.assert_allclose(far.sum(axis=1), 1)


def test_numbers_of_the_nearest_examples():
    """A regression, with scikit-learn's neighbours and the units of the targets."""
    draw = np.random.default_rng(1)
    x, y = draw.normal(size=(12, 3)), 5 + 10 * draw.normal(size=12)
    model = models.logistic((3,), 1)
    task = tasks.regression(model, target_mean=5.0, target_std=10.0)
    k, lam, scale = 4, 0.3, 0.7
    with jax.enable_x64(True):
        params = jax.tree.map(
            lambda leaf: draw.normal(size=leaf.shape), task.init(jax.random.key(0))
        )
        store = Datastore(jnp.asarray(x), jnp.asarray(y), np.arange(12) < 9)
        local = core.LocalTraining(optax.sgd(0.1))
        method = ALGORITHMS["knnper"](task, local, k=k, lam=lam, scale=scale)
        found = method.predict({"model": params, "datastore": store}, jnp.asarray(x), None)
        found = np.asarray(task.decode(found))
        linear = np.asarray(task.decode(task.predict(params, jnp.asarray(x))))
    # A tree, as scikit-learn's brute force loses digits of distances near 0.
    nearest = KNeighborsRegressor(
        k, weights=lambda distances: np.exp(-distances / scale), algorithm="kd_tree"
    )
    nearest = nearest.fit(x[:9], y[:9]).predict(x)
    np.testing.assert_allclose(found, lam * nearest + (1 - lam) * linear, rtol=1e-10)
    assert federation.differ(found, linear, least=0.1)


def test_without_neighbours_is_fedavg():
    average = identities.run("fedavg")
    plain_model, mixed = (identities.run("knnper", lam=lam) for lam in (0.0, 0.9))
    federation.assert_close(mixed.server.params, average.server.params)
    federation.assert_close(plain_model.scores["personal"], average.scores["personal"], 1e-5)
    losses = [run.scores["personal"]["test"]["loss"] for run in (mixed, average)]
    assert federation.differ(*losses, least=0.1)
    federation.assert_close(mixed.scores["global"], average.scores["global"], 1e-5)


def test_private_heads_without_neighbours_are_fedper():
    average = identities.run("fedper")
    plain_model, mixed = (
        identities.run("knnper", lam=lam, private_head=True) for lam in (0.0, 0.9)
    )
    federation.assert_close(mixed.clients, average.clients)
    federation.assert_close(plain_model.scores["personal"], average.scores["personal"], 1e-5)
    losses = [run.scores["personal"]["test"]["loss"] for run in (mixed, average)]
    assert federation.differ(*losses, least=0.1) and "global" not in mixed.scores


def padded(features, x, y, batch, largest):
    """The datastore of a client, filled up to whole batches of the largest client."""
    rest = -(-largest // batch) * batch - len(y)
    rows = np.concatenate([features, np.zeros((rest, features.shape[1]))])
    return Datastore(rows, np.append(y, [y[0]] * rest), np.arange(len(rows)) < len(y))


def test_batch_norm():
    def personal(server, client, x, y):
        features = np.asarray(plain.features(server.params, x, False))
        store = padded(features, x, y, plain.BATCH, federation.SIZES.max())
        return {"model": server.params, "datastore": store}

    batch_norm.check("knnper", batch_norm.averaged(plain.train), personal=personal)


def test_plain_loop():
    def loop(world):
        for round in plain_loops.fedavg(world):
            deployed = {}
            for k, (x, y) in enumerate(zip(world.x, world.y, strict=True)):
                z = np.asarray(plain_loops.features(round.server, x))
                store = padded(z, x, y, plain_loops.BATCH, max(plain_loops.SIZES))
                deployed[k] = plain_loops.vector(*store, round.server)
            yield round._replace(deployed=deployed)

    plain_rounds.check("knnper", loop, {})
