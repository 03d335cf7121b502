"""FedCAC: critical entries of the params, and the groups of clients that share them."""

import itertools

import batch_norm
import federation
import identities
import jax
import jax.numpy as jnp
import numpy as np
import plain
import pytest
import quadratics
from quadratics import MEANS, SHARE, START, near, personal_gaps, steps_towards, vector

from pfljax.algorithms import ALGORITHMS
from pfljax.engine import sampling


@pytest.mark.parametrize("tau, beta", [(0.5, 4.0), (0.5, 0.5), (1.0, 4.0)])
def test_closed_form(tau, beta):
    # Each of the two arrays has two entries: one is critical, or (tau = 1) both.
    w, u, critical, sizes = START, np.zeros((3, 4)), np.zeros((3, 4), bool), set()
    for round in range(3):
        start = np.where(critical, u, w)
        theta = steps_towards(start, MEANS)
        scores = np.abs((theta - start) * theta).reshape(3, 2, 2)
        ranks = np.argsort(np.argsort(scores, axis=-1), axis=-1)
        critical = (ranks >= (1 if tau < 1 else 0)).reshape(3, 4)
        apart = np.abs(critical[:, None].astype(int) - critical).sum(axis=-1)
        overlap = 1 - apart / (2 * critical.sum(axis=-1)[:, None])
        others = overlap[~np.eye(3, dtype=bool)]
        threshold = others.mean() + (round + 1) / beta * (others.max() - others.mean())
        group = (overlap >= threshold - 1e-9) | np.eye(3, dtype=bool)
        sizes |= set(group.sum(axis=1).tolist())
        u = (group / group.sum(axis=1, keepdims=True)) @ theta
        w = SHARE @ theta
    # Groups change; after beta all are alone; where all overlap alike, all stay together.
    assert sizes == {(0.5, 4.0): {1, 2, 3}, (0.5, 0.5): {1}, (1.0, 4.0): {3}}[tau, beta]
    outcome = quadratics.run("fedcac", 3, tau=tau, beta=beta)
    near(vector(outcome.server.average.params), w)
    np.testing.assert_array_equal(vector(outcome.clients.critical), critical)
    near(vector(outcome.clients.params), u)
    near(outcome.scores["personal"]["test"]["loss"], personal_gaps(np.where(critical, u, w)))


def test_without_critical_entries_is_fedavg():
    average, cautious = identities.run("fedavg"), identities.run("fedcac", tau=0.0)
    federation.assert_close(cautious.server.average, average.server)
    federation.assert_close(cautious.scores["personal"], average.scores["global"])
    other = identities.run("fedcac")
    assert federation.differ(other.server.average, average.server)
    assert federation.differ(other.scores["personal"], other.scores["global"])


def test_beta_determines_how_long_clients_share():
    first, later, never = (
        identities.run("fedcac", beta=b).clients.params for b in (0.1, 0.2, 100.0)
    )
    federation.assert_close(first, later)
    assert federation.differ(first, never)


def test_batch_norm():
    tau, beta = 0.5, 4.0
    numbers = itertools.count()

    def personal(server, client, x, y):
        return jax.tree.map(jnp.where, client.critical, client.params, server.average.params)

    def mask_of(end, begin):
        scores = np.abs((end - begin) * end)
        kept = np.sort(scores.ravel())[::-1][: int(tau * scores.size)]
        return (scores >= kept[-1]) & (scores > 0)

    def overlap(a, b):
        a, b = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(m)]) for m in (a, b))
        return 1 - np.sum(a != b) / (2 * np.sum(a))

    def one_round(server, clients, ids, found):
        trained, critical = [], []
        for k in ids:
            start = personal(server, clients[k], None, None)
            model = plain.train(start, *plain.examples(k))
            mask = jax.tree.map(lambda e, b: mask_of(np.asarray(e), np.asarray(b)), model, start)
            mask = plain.with_statistics(mask, {n: np.zeros(4, bool) for n in ("mean", "var")})
            # A bias before the normalization moves by rounding errors only, which decide its mask.
            mask["body"]["Dense_0"]["bias"] = found[k].critical["body"]["Dense_0"]["bias"]
            trained.append(model)
            critical.append(mask)
        table = np.array([[overlap(a, b) for b in critical] for a in critical])
        others = ~np.eye(len(ids), dtype=bool)
        middle, most = table[others].mean(), table[others].max()
        threshold = middle + (next(numbers) + 1) / beta * (most - middle)
        for member, k in enumerate(ids):
            close_by = (table[member] >= threshold - 1e-6) | (np.arange(len(ids)) == member)
            mean = plain.average(
                [m for m, near in zip(trained, close_by, strict=True) if near],
                np.ones(close_by.sum()),
            )
            clients[k] = clients[k]._replace(params=mean, critical=critical[member])
        return server._replace(
            average=batch_norm.fed_average(server.average, trained, ids), threshold=threshold
        )

    batch_norm.check("fedcac", one_round, personal=personal, tau=tau, beta=beta)


def test_a_client_without_a_step_is_excluded_from_the_groups():
    local = batch_norm.LOCAL._replace(
        drop_remainder=True
    )  # clients of 3 and of 1 examples make no step
    all_clients = sampling.CohortPlan(num_clients=8, size=8)
    algorithm = ALGORITHMS["fedcac"](federation.task(), local._replace(observe=None))
    outcome = federation.run(algorithm, plan=all_clients, rounds=1)
    sizes = [
        sum(np.sum(leaf[k]) for leaf in jax.tree.leaves(outcome.clients.critical)) for k in range(8)
    ]
    idle = [k for k in range(8) if federation.SIZES[k] < 4]
    assert [k for k in range(8) if sizes[k] == 0] == idle and len(idle) == 2
    # Overlaps lie between 0 and 1, and so does a threshold that only real ones decide.
    assert 0 < outcome.server.threshold <= 1
    initial = outcome.clients.params["body"]["Dense_0"]["kernel"][8]
    for k in idle:
        np.testing.assert_array_equal(
            outcome.clients.params["body"]["Dense_0"]["kernel"][k], initial
        )
