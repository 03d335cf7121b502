"""Closed forms of linear models, against least squares with a column for each client."""

import importlib.util
import pathlib

import numpy as np

PATH = pathlib.Path(__file__).parents[2] / "experiments" / "closed_forms.py"


def load():
    """Returns the script as a module."""
    spec = importlib.util.spec_from_file_location("closed_forms", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


forms = load()
DRAW = np.random.default_rng(0)
TRAIN = [
    (np.concatenate([DRAW.normal(size=(n, 2)), np.ones((n, 1))], axis=1), DRAW.normal(size=n))
    for n in (5, 8, 6)
]


def test_own_intercepts_are_least_squares_with_a_column_for_each_client():
    columns = [np.eye(3)[[k] * len(targets)] for k, (_, targets) in enumerate(TRAIN)]
    slopes = np.concatenate([x[:, :2] for x, _ in TRAIN])
    inputs = np.concatenate([slopes, np.concatenate(columns)], axis=1)
    expected = np.linalg.lstsq(inputs, np.concatenate([y for _, y in TRAIN]))[0]
    for k, weights in enumerate(forms.own_intercepts(TRAIN)):
        np.testing.assert_allclose(weights, [*expected[:2], expected[2 + k]])


def test_ridge_is_between_own_and_pooled_slopes():
    for lam, limit in ((1e-9, forms.own_slopes(TRAIN)), (1e9, forms.pooled_slopes(TRAIN))):
        np.testing.assert_allclose(forms.ridge(lam)(TRAIN), limit, rtol=1e-5, atol=1e-7)
    found = forms.ridge(0.5)(TRAIN)
    (common, *_) = forms.pooled_slopes(TRAIN)
    for weights, (inputs, targets) in zip(found, TRAIN, strict=True):
        slope = 2 * inputs.T @ (inputs @ weights - targets) / len(targets)
        np.testing.assert_allclose(slope + 0.5 * (weights - common), 0, atol=1e-12)


def test_a_score_is_the_mean_over_clients_in_the_units_of_the_targets():
    weights = forms.own_mean(TRAIN)
    np.testing.assert_allclose([each[-1] for each in weights], [y.mean() for _, y in TRAIN])
    variances = [y.var() for _, y in TRAIN]
    assert np.isclose(forms.score(weights, TRAIN, 3.0, "unweighted"), 9 * np.mean(variances))
    pooled = np.average(variances, weights=[5, 8, 6])
    assert np.isclose(forms.score(weights, TRAIN, 3.0, "weighted"), 9 * pooled)
