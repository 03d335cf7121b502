"""PGFedMo: momentum of the gradients of the other clients' losses."""

import batch_norm
import federation
import identities
import numpy as np
import pgfed_rounds
import plain_rounds
import quadratics
from quadratics import near, vector

MU, RATE, BETA = 0.5, 0.3, 0.6


def test_closed_form():
    w, theta, g, constants, alpha, extra, _ = pgfed_rounds.on_quadratics(4, MU, RATE, beta=BETA)
    outcome = quadratics.run("pgfedmo", 4, mu=MU, weight_rate=RATE, beta=BETA)
    near(vector(outcome.server.average.params), w)
    near(vector(outcome.server.gradients), g)
    near(outcome.server.constants, constants)
    near(outcome.server.weights, alpha)
    near(vector(outcome.clients.params), theta)
    near(vector(outcome.clients.auxiliary), extra)


def test_without_momentum_is_pgfed():
    without, method = identities.run("pgfedmo", beta=0.0, mu=0.5), identities.run("pgfed", mu=0.5)
    federation.assert_close(without.server, method.server)
    federation.assert_close(without.scores["personal"], method.scores["personal"])
    moving = identities.run("pgfedmo", beta=0.9, mu=0.5)
    assert federation.differ(moving.server.average, method.server.average)
    # A client that took part in the first round only has received no gradient of others.
    known, kept = moving.clients.known, moving.clients.auxiliary["head"]["kernel"]
    np.testing.assert_array_equal(known, np.any(kept != 0, axis=(1, 2)))


def test_batch_norm():
    one_round = pgfed_rounds.with_batch_norm(MU, RATE, BETA)
    batch_norm.check("pgfedmo", one_round, rounds=3, mu=MU, weight_rate=RATE, beta=BETA)


def test_plain_loop():
    def loop(world):
        return pgfed_rounds.in_batches(world, 0.4, 0.2, beta=BETA)

    plain_rounds.check("pgfedmo", loop, {"mu": 0.4, "weight_rate": 0.2, "beta": BETA})
