"""LP-FT: FedAvg whose clients train the head of the global model, and then all of it."""

import batch_norm
import federation
import identities
import numpy as np
import plain
import plain_loops
import plain_rounds
import quadratics
from identities import ALL_CLIENTS
from plain_loops import HEAD, ROUNDS, rate_of
from quadratics import MEANS, SHARE, START, near, personal_gaps, steps_towards


def test_closed_form():
    outcome = quadratics.run("lp_ft", 1, probing_epochs=3, fine_tuning_epochs=2)
    w = SHARE @ steps_towards(START, MEANS)
    body = steps_towards(w[:2], MEANS[:, :2], steps=2)
    head = steps_towards(w[2:], MEANS[:, 2:], steps=3 + 2)
    tuned = np.concatenate([body, head], axis=1)
    near(outcome.scores["personal"]["test"]["loss"], personal_gaps(tuned))


def test_without_probing_is_fedavg_with_fine_tuning_and_with_it_not():
    whole = {"plan": ALL_CLIENTS, "fine_tuning_epochs": 3}
    tuned = identities.run("fedavg_ft", **whole)
    same = identities.run("lp_ft", probing_epochs=0, **whole)
    federation.assert_close(same.scores, tuned.scores)
    probed = identities.run("lp_ft", probing_epochs=2, **whole)
    federation.assert_close(probed.scores["global"], tuned.scores["global"])
    assert federation.differ(probed.scores["personal"], tuned.scores["personal"])


def test_batch_norm():
    def personal(server, client, x, y):
        probed = plain.train(server.params, x, y, part="head", epochs=3)
        return plain.train(probed, x, y, epochs=2)

    batch_norm.check(
        "lp_ft",
        batch_norm.averaged(plain.train),
        personal=personal,
        probing_epochs=3,
        fine_tuning_epochs=2,
    )


def test_plain_loop():
    def loop(world):
        for round in plain_loops.fedavg(world):
            deployed = {}
            for k in range(4):
                probed = world.train(k, round.server, rate_of(ROUNDS), 3, part=HEAD)
                deployed[k] = world.train(k, probed, rate_of(ROUNDS), 2)
            yield round._replace(deployed=deployed)

    plain_rounds.check("lp_ft", loop, {"probing_epochs": 3, "fine_tuning_epochs": 2})
