"""PROAR-PFed: over-the-air averages of normalized updates, and Ditto's personalized models."""

import federation
import identities
import jax.numpy as jnp
import numpy as np
import plain_loops
import plain_rounds
import pytest
import quadratics
from plain_loops import Round, World, rate_of, slope
from quadratics import ETA, MEANS, SHARE, START, STEPS, near, steps_towards, vector

from pfljax.ops import channel

PERFECT = {"csi_error": 0.0, "snr_db": 200.0}  # and no noise that float32 has
DRAW = np.random.default_rng(8)
# Gains of the channels and their estimates, `[rounds, clients]`.
GAINS = DRAW.normal(size=(3, 4)) + 1j * DRAW.normal(size=(3, 4)) + 0.5
KNOWN = GAINS + 0.2 * (DRAW.normal(size=(3, 4)) + 1j * DRAW.normal(size=(3, 4)))


def follow(monkeypatch, gains, known):
    """Replaces the channels of the methods that a test makes by tables `[rounds, clients]`."""

    def of_client(context, elements, error, target, dtype):
        row = context.round, context.client_id
        return jnp.asarray(gains)[row], jnp.asarray(known)[row]

    monkeypatch.setattr(channel, "of_client", of_client)


def test_closed_form(monkeypatch):
    follow(monkeypatch, np.ones((2, 3), np.complex64), np.ones((2, 3), np.complex64))
    beta, power, lam = 10.0, 0.6, 0.8
    w, v, counts = START, np.tile(START, (3, 1)), []
    for _ in range(2):
        v = steps_towards(v, (MEANS + lam * w) / (1 + lam), rate=ETA * (1 + lam))
        change = np.zeros(4)
        for mean, share in zip(MEANS, SHARE, strict=True):
            for tau in range(1, STEPS + 1):
                moved = steps_towards(w, mean, steps=tau) - w
                if (beta * share) ** 2 * np.sum(moved**2) <= power * tau**2:
                    break
            counts.append(tau)
            change = change + share * moved / tau
        w = w + change
    assert len(set(counts)) > 1, f"all clients take {counts[0]} steps"
    settings = {"beta": beta, "power": power, "lam": lam, "personal_epochs": STEPS}
    outcome = quadratics.run("proar_pfed", 2, **settings, **PERFECT)
    near(vector(outcome.server.average.params), w)
    near(vector(outcome.clients), v)
    near(outcome.metrics["steps"], np.reshape(counts, (2, 3)).mean(axis=1))


def test_one_step_without_noise_is_fedavg_and_steps_noise_and_errors_count():
    # With so much power that one step suffices, it is FedAvg with one local step.
    one_step = federation.local_training(shuffle=False, num_steps=1)
    average = identities.run("fedavg", local=one_step)
    strong = identities.run("proar_pfed", power=1e30, snr_db=200.0, beta=1e15, csi_error=0.0)
    federation.assert_close(strong.server.average.params, average.server.params, 1e-5)
    weak = identities.run("proar_pfed", power=1e-12, beta=50.0, **PERFECT)
    assert federation.differ(weak.server.average.params, average.server.params)
    assert np.all(strong.metrics["steps"] == 1) and np.all(weak.metrics["steps"] > 1)
    for change in ({"snr_db": 20.0}, {"csi_error": 0.1}):
        other = identities.run("proar_pfed", **{"power": 1e-12, "beta": 50.0, **PERFECT, **change})
        assert federation.differ(other.server.average.params, weak.server.average.params, 1e-9)


def test_personal_models_are_dittos_and_local_without_pull():
    alone = identities.run("proar_pfed", lam=0.0, personal_epochs=2, join="initial")
    federation.assert_close(alone.clients, identities.run("local", join="initial").clients)
    pulled = identities.run("proar_pfed", lam=1.0, personal_epochs=2, join="initial")
    assert federation.differ(pulled.clients, alone.clients)


@pytest.mark.parametrize("snr_db", [0.0, 20.0])
def test_noise_has_the_standard_deviation_of_the_formula(snr_db):
    still = federation.local_training(shuffle=False, num_steps=1, schedule=lambda round: 0.0)
    power, beta = 4.0, 10.0
    start, moved = (
        identities.run(
            "proar_pfed", local=still, rounds=rounds, power=power, beta=beta, snr_db=snr_db
        ).server.average.params
        for rounds in (1, 2)
    )
    noise = plain_loops.flat(moved) - plain_loops.flat(start)  # of the second round alone
    total = federation.SIZES[:8].sum()
    weights = np.sort(federation.SIZES[:8]) / total
    std = np.sqrt(power) * 10 ** (-snr_db / 20) / beta
    least, most = std / weights[-5:].sum(), std / weights[:5].sum()  # for any cohort of five
    assert 0.7 * least < np.std(noise) < 1.3 * most


def test_plain_loop(monkeypatch):
    follow(monkeypatch, GAINS, KNOWN)
    beta, power, lam = 10.0, 0.3, 0.6
    counts = []

    def loop(world: World):
        w, own, total = world.params, {}, sum(plain_loops.SIZES)
        for r, cohort in enumerate(world.cohorts):

            def gradient(v, x, y, w=w):
                return slope(v, x, y) + lam * (v - w)

            change, weight = 0, 0
            for k in cohort:
                own[k] = world.train(k, own.get(k, w), rate_of(r), 1, gradient=gradient)
                alpha = plain_loops.SIZES[k] / total
                theta, tau = w, 0
                for x, y in world.batches(k):
                    theta, tau = theta - rate_of(r) * slope(theta, x, y), tau + 1
                    signal = beta * alpha * (theta - w) / (tau * abs(KNOWN[r, k]))
                    if signal @ signal <= power:
                        break
                counts.append(tau)
                factor = (GAINS[r, k] / KNOWN[r, k]).real
                change = change + alpha * factor * (theta - w) / tau
                weight = weight + alpha
            w = w + change / weight
            yield Round(np.append(w, total), dict(own), dict(own))

    plain_rounds.check(
        "proar_pfed", loop, {"beta": beta, "power": power, "lam": lam, "snr_db": 200.0}
    )
    assert len(set(counts)) > 2, counts
