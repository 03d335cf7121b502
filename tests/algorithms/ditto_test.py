"""Ditto: a personalized model beside FedAvg, and local training without the pull."""

import batch_norm
import federation
import identities
import numpy as np
import plain
import quadratics
from quadratics import ETA, MEANS, SHARE, START, near, steps_towards, vector


def test_closed_form():
    lam, w, v = 0.8, START, np.tile(START, (3, 1))
    for _ in range(2):
        v = steps_towards(v, (MEANS + lam * w) / (1 + lam), rate=ETA * (1 + lam), steps=4)
        w = SHARE @ steps_towards(w, MEANS)
    outcome = quadratics.run("ditto", 2, lam=lam, personal_epochs=4)
    near(vector(outcome.server.params), w)
    near(vector(outcome.clients), v)


def test_without_pull_is_local_training_beside_fedavg():
    ditto = identities.run("ditto", lam=0.0, personal_epochs=2, join="initial")
    federation.assert_close(ditto.server.params, identities.run("fedavg").server.params)
    federation.assert_close(ditto.clients, identities.run("local").clients)
    assert federation.differ(
        identities.run("ditto", lam=1.0, personal_epochs=2).clients, ditto.clients
    )


def test_batch_norm():
    def one_round(server, clients, ids, found):
        for k in ids:
            pull = (plain.pulled, server.params, 0.5)
            clients[k] = plain.train(clients[k], *plain.examples(k), *pull, epochs=1)
        return batch_norm.averaged(plain.train)(server, clients, ids, found)

    batch_norm.check("ditto", one_round, lam=0.5)
