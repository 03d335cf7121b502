"""MR-MTL: one model for each client, and local training without the pull towards their mean."""

import batch_norm
import federation
import identities
import numpy as np
import optax
import plain
import plain_loops
import plain_rounds
import pytest
import quadratics
from identities import ALL_CLIENTS
from plain_loops import Round, World, rate_of, slope
from quadratics import ETA, MEANS, SHARE, START, near, steps_towards, vector

LAM = 0.6


@pytest.mark.parametrize("average_changes", [False, True])
def test_closed_form(average_changes):
    # With half a step of the server, the two rules differ.
    w, v = START, np.tile(START, (3, 1))
    for _ in range(3):
        before = v
        v = steps_towards(v, (MEANS + LAM * w) / (1 + LAM), rate=ETA * (1 + LAM))
        w = w + 0.5 * SHARE @ (v - before if average_changes else v - w)
    outcome = quadratics.run(
        "mr_mtl", 3, lam=LAM, average_changes=average_changes, server_optimizer=optax.sgd(0.5)
    )
    near(vector(outcome.server.params), w)
    near(vector(outcome.clients), v)


def test_without_pull_is_local_training_and_with_it_not():
    alone = identities.run("mr_mtl", lam=0.0, join="initial")
    federation.assert_close(alone.clients, identities.run("local").clients)
    pulled = identities.run("mr_mtl", lam=1.0, join="initial")
    assert federation.differ(pulled.clients, alone.clients)


def test_the_first_round_is_that_of_fedprox_and_later_ones_are_not():
    (start, proximal), later = (
        [
            identities.run(name, plan=ALL_CLIENTS, rounds=rounds, **{weight: 1.0}).server.params
            for name, weight in (("mr_mtl", "lam"), ("fedprox", "mu"))
        ]
        for rounds in (1, 3)
    )
    federation.assert_close(start, proximal)
    assert federation.differ(*later)


def test_both_means_are_one_with_all_clients_in_every_round():
    models, changes = (
        identities.run("mr_mtl", plan=ALL_CLIENTS, rounds=3, lam=1.0, **changes).server.params
        for changes in ({}, {"average_changes": True})
    )
    federation.assert_close(models, changes, tolerance=1e-5)


@pytest.mark.parametrize("average_changes", [False, True])
def test_batch_norm(average_changes):
    def one_round(server, clients, ids, found):
        bases, trained = [], []
        for k in ids:
            base = server.params
            if average_changes:
                base = plain.with_statistics(clients[k], plain.statistics(server.params))
            bases.append(base)
            clients[k] = plain.train(
                clients[k], *plain.examples(k), plain.pulled, server.params, LAM
            )
            trained.append(clients[k])
        changes = [plain.axpy(-1.0, base, own) for base, own in zip(bases, trained, strict=True)]
        change = plain.average(changes, plain.sizes(ids))
        return server._replace(params=plain.axpy(1.0, change, server.params))

    batch_norm.check("mr_mtl", one_round, lam=LAM, average_changes=average_changes)


def test_plain_loop():
    def loop(world: World):
        w, own = world.params, {}
        for r, cohort in enumerate(world.cohorts):

            def gradient(v, x, y, w=w):
                return slope(v, x, y) + LAM * (v - w)

            for k in cohort:
                own[k] = world.train(k, own.get(k, w), rate_of(r), gradient=gradient)
            w = plain_loops.mean({k: own[k] for k in cohort})
            yield Round(w, dict(own), dict(own))

    plain_rounds.check("mr_mtl", loop, {"lam": LAM})
