"""Median and trimmed mean against NumPy, with padding, weights of zero and few clients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from pfljax import aggregation
from pfljax.aggregation import messages

ROWS = np.random.default_rng(0).normal(size=(8, 3, 2)).astype(np.float32)


def combined(aggregator, present, weights=None, rows=ROWS):
    message = messages.Message(({"a": jnp.asarray(rows)},), (weights,))
    (found,), state = aggregator.combine(message, jnp.asarray(present), (), None)
    assert state == ()
    return np.asarray(found["a"])


PRESENT = [
    np.array([c == "1" for c in p]) for p in ("10110111", "11111111", "10000100", "00100000")
]


@pytest.mark.parametrize("present", PRESENT, ids=lambda p: str(p.sum()))
def test_numpy_agrees_and_padding_does_not_count(present):
    seen = ROWS[present]
    found = combined(aggregation.median(), present)
    np.testing.assert_allclose(found, np.median(seen, axis=0), rtol=1e-6, atol=1e-7)
    for fraction in (0.0, 0.1, 0.2, 0.4, 0.49):
        found = combined(aggregation.trimmed_mean(fraction=fraction), present)
        expected = scipy.stats.trim_mean(seen, fraction, axis=0)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    # Where all would be left out, the median stays.
    found = combined(aggregation.trimmed_mean(fraction=0.5), present)
    np.testing.assert_allclose(found, np.median(seen, axis=0), rtol=1e-5, atol=1e-6)


def test_no_client_gives_zeros():
    absent = np.zeros(8, bool)
    for aggregator in (aggregation.median(), aggregation.trimmed_mean()):
        np.testing.assert_array_equal(combined(aggregator, absent), 0)


def test_clients_without_weight_do_not_count_and_neither_do_those_without_a_class():
    present = np.ones(8, bool)
    weights = jnp.array([0, 1, 5, 0, 2, 2, 9, 0], jnp.float32)
    found = combined(aggregation.median(), present, weights)
    np.testing.assert_allclose(found, np.median(ROWS[np.asarray(weights) > 0], axis=0), rtol=1e-6)

    by_class = np.array(np.random.default_rng(1).integers(0, 2, (8, 3)), np.float32)
    by_class[:, 2] = 0
    found = combined(aggregation.median(), present, jnp.asarray(by_class))
    for c in range(2):
        expected = np.median(ROWS[by_class[:, c] > 0, c], axis=0)
        np.testing.assert_allclose(found[c], expected, rtol=1e-6)
    np.testing.assert_array_equal(found[2], 0)


def test_few_clients_cannot_move_them_far():
    rows = ROWS.copy()
    rows[:2] = 1e6
    for aggregator in (aggregation.median(), aggregation.trimmed_mean(fraction=0.25)):
        found = combined(aggregator, np.ones(8, bool), rows=rows)
        assert np.all(np.abs(found) <= np.abs(ROWS).max())
    assert np.all(
        combined(aggregation.trimmed_mean(fraction=0.0), np.ones(8, bool), rows=rows) > 1e5
    )


def test_the_fraction_may_be_traced():
    traced = jax.jit(
        lambda fraction: aggregation.trimmed_mean(fraction=fraction).combine(
            messages.Message((jnp.asarray(ROWS),), (None,)), jnp.ones(8, bool), (), None
        )[0][0]
    )
    for fraction in (0.1, 0.3):
        expected = scipy.stats.trim_mean(ROWS, fraction, axis=0)
        np.testing.assert_allclose(traced(fraction), expected, rtol=1e-5, atol=1e-6)
