"""FedProto: class prototypes, and local training without the pull towards them."""

import batch_norm
import federation
import identities
import numpy as np
import optax
import plain
import pytest
import quadratics
from quadratics import ENDS, ETA, PLAN, POINTS, SIZES, STEPS, near

from pfljax import core
from pfljax.algorithms import ALGORITHMS


@pytest.mark.parametrize("by_size", [True, False])
def test_closed_form(by_size):
    # No client has class 3; the second client lacks class 0, the first class 2.
    labels, lam, rounds = np.array([0, 0, 0, 1, 1, 2, 0, 1, 1, 2, 2, 0]), 0.7, 3
    own = [(POINTS[e - n : e], labels[e - n : e]) for e, n in zip(ENDS, SIZES, strict=True)]
    task = quadratics.linear_features()
    w = [np.asarray(task.init(None)["body"]["w"], np.float64)] * 3
    prototypes, seen = np.zeros((4, 2)), np.zeros(4, bool)
    for _ in range(rounds):
        sums, weights = np.zeros((4, 2)), np.zeros(4)
        for k, (x, y) in enumerate(own):
            for _ in range(STEPS):
                gap = (x @ w[k] - prototypes[y]) * seen[y][:, None]
                w[k] = w[k] - ETA * lam * 2 / gap.size * x.T @ gap
            for c in np.unique(y):
                weight = np.sum(y == c) if by_size else 1
                sums[c] += weight * (x @ w[k])[y == c].mean(axis=0)
                weights[c] += weight
        seen = weights > 0
        prototypes[seen] = sums[seen] / weights[seen][:, None]
    assert list(seen) == [True, True, True, False]

    local = core.LocalTraining(optax.sgd(ETA), batch_size=8, epochs=STEPS)
    data = federation.examples_of(POINTS, labels.astype(np.int32), SIZES, num_classes=4)
    outcome = federation.run(
        ALGORITHMS["fedproto"](task, local, lam=lam, weight_by_size=by_size),
        data=data,
        plan=PLAN,
        rounds=rounds,
        score=task,
        devices=2,
    )
    near(outcome.server.prototypes.means, prototypes)
    np.testing.assert_array_equal(outcome.server.prototypes.seen, seen)
    near(outcome.clients["body"]["w"], np.stack(w))
    right, outputs = [], []
    for (x, y), matrix in zip(own, w, strict=True):
        distances = (((x @ matrix)[:, None] - prototypes[:3]) ** 2).sum(axis=-1)
        right.append(np.sum(distances.argmin(axis=1) == y))
        outputs.append(-distances.sum() - (distances.max(axis=1) + 1).sum())  # class 3 behind all
    near(outcome.scores["personal"]["test"]["accuracy"], right)
    near(outcome.scores["personal"]["test"]["loss"], outputs)


def test_without_pull_is_local_training():
    alone = identities.run("local")
    apart = identities.run("fedproto", lam=0.0)
    federation.assert_close(apart.clients, alone.clients)
    # Before the first round the head answers, as it does in local training; later the prototypes.
    federation.assert_close(apart.untrained_scores, alone.untrained_scores)
    assert federation.differ(apart.scores, alone.scores)
    assert federation.differ(identities.run("fedproto", lam=1.0).clients, alone.clients)


def test_prototypes_in_training_and_after_it():
    at_rest = federation.local_training(shuffle=False, optimizer=optax.sgd(0.0))
    for local, same in ((at_rest, True), (federation.local_training(shuffle=False), False)):
        during, after = (
            identities.run(
                "fedproto", local=local, prototypes_in_training=flag
            ).server.prototypes.means
            for flag in (True, False)
        )
        if same:
            federation.assert_close(during, after)
        else:
            assert federation.differ(during, after)


@pytest.mark.parametrize("in_training", [False, True])
def test_batch_norm(in_training):
    def one_round(server, clients, ids, found):
        known, total, counts = server.prototypes, 0, 0
        for k in ids:
            x, y = plain.examples(k)
            objective = (batch_norm.aligned, known, 2.0)
            if in_training:
                for _ in range(plain.EPOCHS):
                    for u, v in plain.batches(x, y):
                        total += plain.class_sums(plain.features(clients[k], u, True), v)
                        counts += plain.classes(v)
                        clients[k] = plain.train(clients[k], u, v, *objective, epochs=1)
            else:
                clients[k] = plain.train(clients[k], x, y, *objective)
                total += plain.class_sums(plain.features(clients[k], x, False), y)
                counts += plain.classes(y)
        return server._replace(prototypes=batch_norm.prototypes_of(total, counts, known))

    batch_norm.check("fedproto", one_round, lam=2.0, prototypes_in_training=in_training)
