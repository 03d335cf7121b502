"""IFCA: clients train the model that fits them best, and FedAvg with one cluster."""

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
from quadratics import MEANS, near, steps_towards, vector


def test_closed_form():
    points = np.split(quadratics.POINTS, quadratics.ENDS[:-1])
    start = quadratics.run_from_random_weights("ifca", eta=0.0, clusters=3)
    models = vector(start.server.params)
    assert np.ptp(models, axis=0).min() > 0.1
    for _ in range(2):
        losses = np.array([[np.sum((w - x) ** 2) for w in models] for x in points])
        chosen = np.argmin(losses, axis=1)
        thetas = steps_towards(models[chosen], MEANS)
        models = np.stack(
            [
                thetas[chosen == c].mean(axis=0) if np.any(chosen == c) else w
                for c, w in enumerate(models)
            ]
        )
    assert len(set(chosen)) > 1, "all clients in one cluster"
    outcome = quadratics.run_from_random_weights("ifca", rounds=2, clusters=3)
    near(vector(outcome.server.params), models)


def test_with_one_cluster_is_fedavg():
    fixed = federation.task().init(jax.random.key(7))
    alike = federation.task()._replace(init=lambda key: fixed)
    average = identities.run("fedavg", task=alike)
    single = identities.run("ifca", task=alike, clusters=1, weight_by_size=True)
    federation.assert_close(jax.tree.map(lambda leaf: leaf[0], single.server), average.server)
    federation.assert_close(single.scores["personal"], average.scores["personal"], 1e-5)
    two = identities.run("ifca", weight_by_size=True)
    first = jax.tree.map(lambda leaf: leaf[0], two.server.params)
    assert federation.differ(first, average.server.params)
    uniform = identities.run("ifca", weight_by_size=False)
    assert federation.differ(uniform.server.params, two.server.params)


def test_finds_two_groups_of_clients_with_opposite_labels():
    draw = np.random.default_rng(0)
    inputs = draw.normal(size=(8 * 12, federation.NUM_FEATURES)).astype(np.float32)
    targets = (inputs[:, 0] > 0).astype(np.int32)
    groups = np.arange(8) % 2
    targets = np.where(np.repeat(groups, 12) == 1, 1 - targets, targets).astype(np.int32)
    data = federation.examples_of(inputs, targets, np.full(8, 12), num_classes=3)
    local = federation.local_training(shuffle=False, epochs=20)
    plan = identities.ALL_CLIENTS
    found = identities.run("ifca", data=data, local=local, plan=plan, rounds=6)
    common = identities.run("fedavg", data=data, local=local, plan=plan, rounds=6)
    accuracy = [
        outcome.scores["personal"]["test"]["accuracy"].sum() / len(targets)
        for outcome in (found, common)
    ]
    assert accuracy[0] > 0.9 > accuracy[1]


def test_batch_norm():
    def rows(models):
        return [jax.tree.map(lambda leaf, c=c: leaf[c], models) for c in range(2)]

    def choose(models, x, y):
        return int(np.argmin([plain.loss(model, x, y, train=False) for model in models]))

    def one_round(server, clients, ids, found):
        models = rows(server.params)
        trained = [[] for _ in models]
        for k in ids:
            x, y = plain.examples(k)
            c = choose(models, x, y)
            trained[c].append(plain.train(models[c], x, y))
        assert any(trained)
        models = [
            plain.average(new, np.ones(len(new))) if new else old
            for new, old in zip(trained, models, strict=True)
        ]
        return server._replace(params=jax.tree.map(lambda *leaf: jnp.stack(leaf), *models))

    def personal(server, client, x, y):
        models = rows(server.params)
        return models[choose(models, x, y)]

    batch_norm.check("ifca", one_round, personal=personal)


def test_plain_loop():
    def rows(params):
        leaves = jax.tree.leaves(params)
        return [np.concatenate([np.ravel(leaf[c]) for leaf in leaves]) for c in range(2)]

    def loop(world):
        models = rows(world.server.params)

        def choose(k):
            return int(np.argmin([plain_loops.loss(w, world.x[k], world.y[k]) for w in models]))

        for r, cohort in enumerate(world.cohorts):
            trained = {0: [], 1: []}
            for k in cohort:
                c = choose(k)
                trained[c].append(world.train(k, models[c], plain_loops.rate_of(r)))
            models = [np.mean(trained[c], axis=0) if trained[c] else models[c] for c in (0, 1)]
            deployed = {k: models[choose(k)] for k in range(4)}
            yield plain_loops.Round(plain_loops.by_array(np.stack(models)), {}, deployed)

    plain_rounds.check("ifca", loop, {})
