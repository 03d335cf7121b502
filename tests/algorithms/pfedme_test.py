"""pFedMe: Moreau envelopes, with inner steps towards the local copy of the global model."""

import batch_norm
import federation
import identities
import numpy as np
import plain
import quadratics
from quadratics import ETA, MEANS, START, STEPS, near, personal_gaps, steps_towards, vector


def test_closed_form():
    lam, inner_rate, beta, w = 2.0, 0.1, 1.5, START
    for _ in range(2):
        own = theta = np.tile(w, (3, 1))
        for _ in range(STEPS):
            # The gradient (theta - m) + lam (theta - w) vanishes at (m + lam w) / (1 + lam).
            middle, rate = (MEANS + lam * own) / (1 + lam), inner_rate * (1 + lam)
            theta = steps_towards(theta, middle, rate=rate, steps=4)
            own = own - ETA * lam * (own - theta)
        w = (1 - beta) * w + beta * own.mean(axis=0)
    outcome = quadratics.run("pfedme", 2, lam=lam, inner_steps=4, inner_rate=inner_rate, beta=beta)
    near(vector(outcome.server.params), w)
    near(vector(outcome.clients), theta)
    near(outcome.scores["personal"]["test"]["loss"], personal_gaps(theta))


def test_with_one_inner_step_on_one_batch_is_fedavg():
    # theta is then a step away from w, and w goes 0.1 * lam of that step.
    once = federation.local_training(shuffle=False, batch_size=16, epochs=1)
    settings = {"lam": 2.0, "inner_rate": 0.5, "weight_by_size": True}
    average = identities.run("fedavg", local=once).server.params
    moreau = identities.run("pfedme", local=once, inner_steps=1, **settings)
    federation.assert_close(moreau.server.params, average)
    for change in ({"inner_steps": 2}, {"beta": 2.0}, {"weight_by_size": False}):
        other = identities.run("pfedme", local=once, **{"inner_steps": 1, **settings, **change})
        assert federation.differ(other.server.params, average)


def test_without_pull_is_local_training_beside_a_server_at_rest():
    moreau = identities.run("pfedme", rounds=1, lam=0.0, inner_steps=1, inner_rate=0.1)
    federation.assert_close(moreau.clients, identities.run("local", rounds=1).clients)
    untouched = identities.run("pfedme", rounds=3, beta=0.0)
    federation.assert_close(untouched.server.params, moreau.server.params)
    pulled = identities.run("pfedme", rounds=1, lam=1.0, inner_steps=1, inner_rate=0.1)
    assert federation.differ(pulled.clients, moreau.clients)
    assert federation.differ(pulled.server.params, moreau.server.params)


def test_batch_norm():
    lam, rate, inner, beta = 2.0, 0.05, 3, 1.5

    def one_round(server, clients, ids, found):
        w = server.params
        trained = []
        for k in ids:
            x, y = plain.examples(k)
            model = theta = w
            for _ in range(plain.EPOCHS):
                for u, v in plain.batches(x, y):
                    for _ in range(inner):
                        slope = plain.gradient(plain.loss)(theta, u, v)
                        pull = plain.combine((1, lam, -lam), (slope, theta, model))
                        theta = plain.step(theta, pull, u, rate=rate)
                    model = plain.step(model, plain.combine((lam, -lam), (model, theta)), u)
            clients[k] = theta
            trained.append(model)
        mean = plain.average(trained, np.ones(len(ids)))
        moved = plain.combine((1 - beta, beta), (w, mean))
        return server._replace(params=plain.with_statistics(moved, plain.statistics(mean)))

    batch_norm.check(
        "pfedme",
        one_round,
        personal=lambda server, client, x, y: client,
        **{"lam": lam, "inner_steps": inner, "inner_rate": rate, "beta": beta},
    )
