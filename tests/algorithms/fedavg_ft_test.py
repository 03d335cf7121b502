"""FedAvg with fine-tuning: FedAvg whose clients adapt the global model before they use it."""

import batch_norm
import federation
import identities
import plain
import quadratics
from identities import ALL_CLIENTS
from quadratics import ENDS, MEANS, POINTS, SHARE, SIZES, START, near, steps_towards


def test_closed_form():
    outcome = quadratics.run("fedavg_ft", 1, fine_tuning_epochs=2)
    w = SHARE @ steps_towards(START, MEANS)
    tuned = steps_towards(w, MEANS, steps=2)
    gaps = [
        (POINTS[e - n : e] - theta).sum() for e, n, theta in zip(ENDS, SIZES, tuned, strict=True)
    ]
    near(outcome.scores["personal"]["test"]["loss"], gaps)


def test_fine_tuning_for_no_epoch_is_fedavg():
    average = identities.run("fedavg", plan=ALL_CLIENTS)
    tuned = identities.run("fedavg_ft", plan=ALL_CLIENTS, fine_tuning_epochs=0)
    federation.assert_close(tuned.scores, average.scores)
    more = identities.run("fedavg_ft", plan=ALL_CLIENTS, fine_tuning_epochs=3)
    federation.assert_close(more.scores["global"], average.scores["global"])
    assert federation.differ(more.scores["personal"], average.scores["personal"])


def test_batch_norm():
    batch_norm.check(
        "fedavg_ft",
        batch_norm.averaged(plain.train),
        fine_tuning_epochs=3,
        personal=lambda server, client, x, y: plain.train(server.params, x, y, epochs=3),
    )
