"""FedProx: local training towards the global model, and FedAvg without that pull."""

import batch_norm
import federation
import identities
import plain
import quadratics
from quadratics import ETA, MEANS, SHARE, START, near, steps_towards, vector


def test_closed_form():
    mu, w = 0.5, START
    for _ in range(2):
        # The gradient (theta - m) + mu (theta - w) vanishes at (m + mu w) / (1 + mu).
        w = SHARE @ steps_towards(w, (MEANS + mu * w) / (1 + mu), rate=ETA * (1 + mu))
    near(vector(quadratics.run("fedprox", 2, mu=mu).server.params), w)


def test_without_pull_is_fedavg():
    average = identities.run("fedavg").server.params
    federation.assert_close(identities.run("fedprox", mu=0.0).server.params, average)
    assert federation.differ(identities.run("fedprox", mu=1.0).server.params, average)


def test_batch_norm():
    batch_norm.check(
        "fedprox",
        batch_norm.averaged(lambda w, x, y: plain.train(w, x, y, plain.pulled, w, 0.5)),
        mu=0.5,
    )
