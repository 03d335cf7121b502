"""The channel's noise, and the clients that do not transmit."""

import cohorts
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from pfljax import aggregation, core


def sent_by(count, size, seed=0):
    draw = np.random.default_rng(seed)
    rows = draw.normal(size=(count, size)).astype(np.float32)
    weights = np.arange(1, count + 1, dtype=np.float32)
    return (
        rows,
        weights,
        [core.weighted(jnp.asarray(r), w) for r, w in zip(rows, weights, strict=True)],
    )


def test_the_sum_with_noise_at_the_signal_to_noise_ratio():
    rows, weights, sent = sent_by(3, 30_000)
    signals = rows * weights[:, None]
    for decibels in (0.0, 20.0):
        total = cohorts.one_round(aggregation.over_the_air(snr_db=decibels), sent).total
        noise = np.asarray(total.value) - signals.sum(axis=0)
        expected = np.sqrt(np.mean(signals**2)) * 10 ** (-decibels / 20)
        np.testing.assert_allclose(noise.std(), expected, rtol=0.03)
        assert total.weight == weights.sum()
    total = cohorts.one_round(aggregation.over_the_air(noise_std=0.5), sent).total
    np.testing.assert_allclose(
        (np.asarray(total.value) - signals.sum(axis=0)).std(), 0.5, rtol=0.03
    )


def test_in_a_deep_fade_clients_do_not_transmit_and_inversion_costs_power():
    threshold, count = 0.5, 60
    rows, weights, sent = sent_by(count, 50)
    aggregator = aggregation.over_the_air(fading=True, gain_threshold=threshold, snr_db=200)
    outcome = jax.jit(lambda: cohorts.one_round(aggregator, sent)[:1])()
    gains = [jax.random.exponential(cohorts.context(0, k).key) for k in range(count)]
    transmits = np.array(gains) >= threshold
    # exp(-0.5) of the clients transmit; the deviation of their share is 0.063.
    assert abs(transmits.mean() - np.exp(-threshold)) < 0.2 and not transmits.all()
    (total,) = outcome
    np.testing.assert_allclose(
        total.value, (rows * weights[:, None])[transmits].sum(axis=0), rtol=1e-3, atol=1e-2
    )
    assert total.weight == weights[transmits].sum()

    rows, weights, sent = sent_by(1, 30_000)
    loud = aggregation.over_the_air(fading=True, gain_threshold=1e-3, snr_db=10)
    noise = np.asarray(cohorts.one_round(loud, sent).total.value) - rows[0]
    power = np.mean(rows**2) * scipy.special.exp1(1e-3) / 10
    np.testing.assert_allclose(noise.std(), np.sqrt(power), rtol=0.03)


@pytest.mark.parametrize("options", [{"noise_std": 3.0}, {"snr_db": -20.0}])
def test_without_a_client_that_transmits_nothing_arrives(options):
    _, _, sent = sent_by(3, 10)
    aggregator = aggregation.over_the_air(fading=True, gain_threshold=1e6, **options)
    total = cohorts.one_round(aggregator, sent).total
    np.testing.assert_array_equal(total.value, 0)
    assert total.weight == 0
    np.testing.assert_array_equal(core.mean(total), 0)
