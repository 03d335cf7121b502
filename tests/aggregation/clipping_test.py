"""Clipping, noise of the promised deviation, and the quantile that an adaptive bound reaches."""

import cohorts
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfljax import aggregation, core
from pfljax.errors import UserError


def test_the_sum_of_clipped_messages_with_weights_of_one():
    sent = cohorts.uploads()
    outcome = cohorts.one_round(aggregation.clip(bound=4), sent)
    vectors = np.stack([cohorts.values(upload) for upload in sent])
    norms = np.linalg.norm(vectors, axis=1)
    assert norms.min() < 4 < norms.max()
    clipped = vectors * np.minimum(1, 4 / norms)[:, None]
    total, plain = outcome.total
    np.testing.assert_allclose(cohorts.flat((total.value, plain)), clipped.sum(axis=0), atol=1e-5)
    assert total.weight == 3


@pytest.mark.parametrize("factor", [1e-3, 1.0, 1e6])
def test_one_client_moves_the_sum_by_the_bound_at_most(factor):
    sent = cohorts.uploads()
    sent[1] = jax.tree.map(lambda leaf: factor * leaf, sent[1])
    aggregator = aggregation.clip(bound=0.7)
    with_it, without = (
        cohorts.one_round(aggregator, clients).total for clients in (sent, [sent[0], sent[2]])
    )
    moved = np.linalg.norm(
        cohorts.flat((with_it[0].value, with_it[1])) - cohorts.flat((without[0].value, without[1]))
    )
    assert moved <= 0.7 * (1 + 1e-5)
    assert moved > 0.69 or factor < 1


@pytest.mark.parametrize("kind", ["clip", "adaptive_clip"])
def test_the_deviation_of_the_noise(kind):
    more = {"clip": {}, "adaptive_clip": {"count_noise": 1.5}}[kind]
    # Of the adaptive bound's noise a part is spent on the count.
    spent = {"clip": 0.8, "adaptive_clip": (0.8**-2 - (2 * 1.5) ** -2) ** -0.5}[kind]
    factory = aggregation.AGGREGATORS[kind]
    quiet, loud = factory(bound=2.0), factory(bound=2.0, noise_multiplier=0.8, **more)
    sent = [(core.weighted({"a": jnp.zeros(40_000)}, 2), jnp.zeros(1_000))] * 2
    noise = cohorts.flat(cohorts.one_round(loud, sent).total)
    noise = np.delete(noise, 40_000)  # the weight, which is exact
    np.testing.assert_allclose(noise.std(), spent * 2.0, rtol=0.02)
    assert abs(noise.mean()) < 5 * spent * 2.0 / np.sqrt(noise.size)
    assert not np.any(cohorts.flat(cohorts.one_round(quiet, sent).total[0].value))
    again = cohorts.flat(cohorts.one_round(loud, sent, round=1).total)
    assert abs(np.corrcoef(np.delete(again, 40_000), noise)[0, 1]) < 0.03


def test_an_adaptive_bound_follows_its_rule_and_reaches_the_quantile():
    draw = np.random.default_rng(1)
    directions = draw.normal(size=(40, 6)).astype(np.float32)
    norms = np.linspace(1, 5, 40, dtype=np.float32)
    directions *= norms[:, None] / np.linalg.norm(directions, axis=1, keepdims=True)
    sent = [core.weighted(jnp.asarray(row), 1) for row in directions]
    aggregator = aggregation.adaptive_clip(bound=0.1, quantile=0.75, bound_rate=0.5)
    bound = expected = 0.1

    @jax.jit
    def step(bound):
        outcome = cohorts.one_round(aggregator, sent, server=bound)
        return outcome.total, outcome.server

    for _ in range(60):
        total, bound = step(jnp.float32(bound))
        clipped = directions * np.minimum(1, expected / norms)[:, None]
        np.testing.assert_allclose(cohorts.flat(total.value), clipped.sum(0), rtol=1e-3, atol=1e-3)
        expected *= np.exp(-0.5 * (np.mean(norms <= expected) - 0.75))
        np.testing.assert_allclose(bound, expected, rtol=1e-4)
    assert abs(np.mean(norms <= float(bound)) - 0.75) <= 1.5 / 40


def test_what_is_not_finite_is_not_clipped_away():
    for bad in (np.nan, np.inf, 3e38):  # the square of the last one overflows
        sent = cohorts.uploads()
        sent[1] = (sent[1][0], sent[1][1].at[0].set(bad))
        total = cohorts.one_round(aggregation.clip(), sent).total
        assert not np.all(np.isfinite(cohorts.flat(total)))


def test_refusals():
    by_class = [core.Weighted(jnp.zeros((3, 2)), jnp.zeros(3))]
    for kind in ("clip", "adaptive_clip"):
        with pytest.raises(UserError, match=f"'{kind}' cannot be used with a method that uploads"):
            cohorts.one_round(aggregation.AGGREGATORS[kind](), by_class)
    with pytest.raises(UserError, match="bound is 0; it must be positive"):
        aggregation.clip(bound=0)
    with pytest.raises(
        UserError, match="count_noise is 0.5; with a noise_multiplier of 1.0 it must be above 0.5"
    ):
        aggregation.adaptive_clip(noise_multiplier=1.0, count_noise=0.5)
    aggregation.adaptive_clip(noise_multiplier=1.0, count_noise=0.51)
