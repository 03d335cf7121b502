"""Agreement, risk-coverage curve, its area and calibration, derived by hand and in loops."""

import itertools

import numpy as np
import pytest

from pfljax.errors import UserError
from pfljax.metrics import judge


def test_agreement_with_a_least_confidence():
    correct, certainty = np.array([1, 0, 1, 1], bool), np.array([90, 80, -1, 70])
    assert judge.agreement(correct, certainty) == (2 / 3, 3)
    assert judge.agreement(correct, certainty, 80) == (0.5, 2)
    value, count = judge.agreement(correct, certainty, 95)
    assert np.isnan(value) and count == 0


def test_risk_coverage_by_hand():
    correct, confidence = np.array([1, 0, 1, 0], bool), np.array([4.0, 3, 2, 1])
    curve = judge.risk_coverage(correct, confidence)
    np.testing.assert_allclose(curve.coverage, [0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(curve.risk, [0, 1 / 2, 1 / 3, 1 / 2])
    assert curve.area == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)


def test_equal_confidences_count_with_the_mean_over_their_orders():
    correct = np.array([True, False, False, True, True])
    confidence = np.array([2.0, 1, 1, 1, 0])
    plain = []
    for order in itertools.permutations(range(5)):
        if all(confidence[a] >= confidence[b] for a, b in itertools.pairwise(order)):
            plain.append(np.cumsum(~correct[list(order)]) / np.arange(1, 6))
    assert len(plain) == 6
    curve = judge.risk_coverage(correct, confidence)
    np.testing.assert_allclose(curve.risk, np.mean(plain, axis=0))
    # Without any information in the confidence, the risk is the error rate at every coverage.
    flat = judge.risk_coverage(correct, np.ones(5))
    np.testing.assert_allclose(flat.risk, 0.4)
    shuffled = judge.risk_coverage(correct[::-1], confidence[::-1])
    np.testing.assert_allclose(shuffled.risk, curve.risk)


def test_the_best_confidence_has_the_smallest_area():
    correct = np.random.default_rng(0).uniform(size=50) < 0.7
    best, worst = (judge.risk_coverage(correct, s * correct).area for s in (1, -1))
    none = judge.risk_coverage(correct, np.zeros(50)).area
    assert best < none < worst


def test_calibration_error_against_a_loop():
    draw = np.random.default_rng(1)
    probability = np.round(draw.uniform(size=200), 2)
    correct = draw.uniform(size=200) < probability**2
    total, bins = 0.0, []
    for edge in range(10):
        inside = (probability > edge / 10) | ((edge == 0) & (probability == 0))
        inside &= probability <= (edge + 1) / 10 + 1e-12
        inside &= ~((probability <= edge / 10 + 1e-12) & (edge > 0))
        bins.append(inside.sum())
        if inside.any():
            total += inside.mean() * abs(correct[inside].mean() - probability[inside].mean())
    error, found = judge.calibration_error(correct, probability)
    assert error == pytest.approx(total) and total > 0.1
    np.testing.assert_array_equal(found[:, 2], bins)
    assert sum(bins) == 200


def test_edges_and_empty_bins():
    error, bins = judge.calibration_error(np.array([0, 1, 1], bool), np.array([0.0, 0.7, 1.0]))
    np.testing.assert_array_equal(np.flatnonzero(bins[:, 2]), [0, 6, 9])
    assert np.isnan(bins[1, :2]).all() and error == pytest.approx(0.1)
    assert judge.calibration_error(np.ones(4, bool), np.full(4, 0.25), 1)[0] == 0.75


@pytest.mark.parametrize("confidence", [[], [np.nan]])
def test_judgements_that_cannot_be_scored(confidence):
    correct = np.ones(len(confidence), bool)
    for function in (judge.risk_coverage, judge.calibration_error):
        with pytest.raises(UserError, match="empty, or a confidence is missing"):
            function(correct, np.array(confidence))
    with pytest.raises(UserError, match="divide percentages by 100"):
        judge.calibration_error(np.ones(1, bool), np.array([80.0]))
