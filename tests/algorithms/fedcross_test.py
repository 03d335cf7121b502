"""FedCross: several models on different clients, each mixed with another."""

import importlib

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
from plain_loops import Round, by_array, rate_of, vector
from quadratics import MEANS, START, near, personal_gaps, steps_towards


@pytest.fixture
def falling_order(monkeypatch):
    """Models are assigned in falling order, so that the loops know which client trains which."""
    module = importlib.import_module("pfljax.algorithms.fedcross")
    monkeypatch.setattr(module, "assign", lambda key, models: jnp.arange(models)[::-1])


def crossed(rows, round, alpha, in_order):
    """The mixtures of models `[K, d]`, and with which model each is mixed."""
    count = len(rows)
    if in_order:
        others = (np.arange(count) + round % (count - 1) + 1) % count
    else:
        normal = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        others = np.argmin(normal @ normal.T + 9 * np.eye(count), axis=1)
    return alpha * rows + (1 - alpha) * rows[others], others


@pytest.mark.parametrize("in_order", [False, True])
def test_closed_form(in_order, falling_order):
    alpha, w, chosen = 0.7, np.tile(START, (3, 1)), set()
    for round in range(3):
        trained = steps_towards(w[::-1], MEANS)[::-1]  # client k trains model 2 - k
        w, others = crossed(trained, round, alpha, in_order)
        chosen.add(tuple(others.tolist()))
    assert chosen == ({(1, 2, 0), (2, 0, 1)} if in_order else {(2, 2, 1)})
    outcome = quadratics.run("fedcross", 3, models=3, alpha=alpha, in_order=in_order)
    near(quadratics.vector(outcome.server.models), w)
    near(outcome.scores["personal"]["test"]["loss"], personal_gaps(np.tile(w.mean(axis=0), (3, 1))))


def test_one_model_is_fedavg():
    average = identities.run("fedavg").server.params
    single = identities.run("fedcross", models=1, alpha=0.9)
    federation.assert_close(jax.tree.map(lambda leaf: leaf[0], single.server.models), average)
    mixed, apart = (identities.run("fedcross", models=5, alpha=a).server for a in (0.9, 1.0))
    for server in (mixed, apart):
        mean = jax.tree.map(lambda leaf: leaf.mean(axis=0), server.models)
        assert federation.differ(mean, average)
    assert federation.differ(mixed.models, apart.models)
    # The assignment is one to one, and another one in every round.
    start, _, _ = batch_norm.one_client_update(federation.make("fedcross", models=5), 0)
    for found in (start, mixed):
        assert sorted(found.assignment.tolist()) == list(range(5))
    assert start.assignment.tolist() != mixed.assignment.tolist()


def test_batch_norm(falling_order):
    alpha, count = 0.7, 4  # five clients: two of them train one model

    def one_round(server, clients, ids, found):
        models = [jax.tree.map(lambda leaf, i=i: leaf[i], server.models) for i in range(count)]
        trained = {}
        for rank, k in enumerate(ids):
            number = count - 1 - rank % count
            model = plain.train(models[number], *plain.examples(k))
            trained.setdefault(number, []).append((model, len(plain.examples(k)[0])))
        for number, pairs in trained.items():
            models[number] = plain.average(*zip(*pairs, strict=True))
        rows = [
            np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(plain.parameters(model))])
            for model in models
        ]
        _, others = crossed(np.stack(rows), 0, alpha, False)
        mixed = [
            plain.combine((alpha, 1 - alpha), (model, models[other]))
            for model, other in zip(models, others, strict=True)
        ]
        return server._replace(models=jax.tree.map(lambda *leaves: np.stack(leaves), *mixed))

    batch_norm.check("fedcross", one_round, models=count, alpha=alpha)


@pytest.mark.parametrize("in_order", [False, True])
def test_plain_loop(in_order, falling_order):
    alpha, count = 0.7, 3  # two clients in a round: one model stays untrained

    def loop(world):
        w = np.tile(world.params, (count, 1))
        for r, cohort in enumerate(world.cohorts):
            trained = w.copy()
            for rank, k in enumerate(sorted(cohort)):
                trained[count - 1 - rank] = world.train(k, w[count - 1 - rank], rate_of(r))
            w, _ = crossed(trained, r, alpha, in_order)
            deployed = dict.fromkeys(range(len(plain_loops.SIZES)), w.mean(axis=0))
            yield Round(vector(by_array(w), np.arange(count)[::-1]), {}, deployed)

    plain_rounds.check("fedcross", loop, {"models": count, "alpha": alpha, "in_order": in_order})
