"""Metrics of a client's whole outputs against scikit-learn and NumPy, with ties and padding."""

import functools
import warnings

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics
from hypothesis import strategies as st
from scipy import special

from pfljax.metrics import METRICS, is_percent
from pfljax.tasks import TASKS

ROWS, CLASSES = 24, 4


@functools.cache
def program(name):
    return jax.jit(METRICS[name].compute)


def padded(name, outputs, targets):
    """The metric of these rows with padding of NaN and of other targets between and after them."""
    outputs, targets = np.float32(outputs), np.asarray(targets)
    rows = np.flatnonzero(np.random.default_rng(0).permutation(ROWS) < len(outputs))
    mask = np.isin(np.arange(ROWS), rows)
    all_outputs = np.full((ROWS, *outputs.shape[1:]), np.nan, np.float32)
    all_targets = np.ones((ROWS, *targets.shape[1:]), targets.dtype)
    all_outputs[rows], all_targets[rows] = outputs, targets
    return float(program(name)(all_outputs, all_targets, mask))


def one_hot(targets):
    return np.eye(CLASSES)[targets]


def auc(logits, targets):
    """The mean over the client's classes of scikit-learn's area, with exact probabilities."""
    found = np.unique(targets)
    if len(found) < 2:
        return np.nan
    p = special.softmax(np.float64(logits), axis=-1)
    return np.mean([sklearn.metrics.roc_auc_score(targets == c, p[:, c]) for c in found])


def macro_f1(logits, targets):
    return sklearn.metrics.f1_score(targets, logits.argmax(-1), average="macro")


def balanced_accuracy(logits, targets):
    with warnings.catch_warnings():
        # Predictions of a class that the client has not.
        warnings.simplefilter("ignore", UserWarning)
        return sklearn.metrics.balanced_accuracy_score(targets, logits.argmax(-1))


def ece(logits, targets):
    p = special.softmax(np.float64(logits), axis=-1)
    confidence, correct = p.max(-1), p.argmax(-1) == targets
    edges, total = np.linspace(0, 1, 16), 0.0
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            gap = abs(correct[inside].mean() - confidence[inside].mean())
            total += inside.mean() * gap
    return total


def brier(logits, targets):
    p = special.softmax(np.float64(logits), axis=-1)
    return np.mean(np.sum((p - one_hot(targets)) ** 2, axis=-1))


def nll(logits, targets):
    p = special.softmax(np.float64(logits), axis=-1)
    return sklearn.metrics.log_loss(targets, p, labels=range(CLASSES))


def r2(predictions, targets):
    if np.all(targets == targets[0]):
        return np.nan
    return sklearn.metrics.r2_score(targets, predictions)


def mrr(scores, targets):
    """Mid-ranks by counting."""
    ranks = []
    for row in scores:
        better, equal = np.sum(row[1:] > row[0]), np.sum(row[1:] == row[0])
        ranks.append(1 + better + equal / 2)
    return np.mean(1 / np.array(ranks))


OF_CLASSES = {
    "auc": auc,
    "macro_f1": macro_f1,
    "balanced_accuracy": balanced_accuracy,
    "ece": ece,
    "brier": brier,
    "nll": nll,
}
OF_NUMBERS = {"rmse": sklearn.metrics.root_mean_squared_error, "r2": r2}
OF_RANKINGS = {"mrr": mrr}


def test_every_metric_is_compared():
    assert set(METRICS) == {*OF_CLASSES, *OF_NUMBERS, *OF_RANKINGS}
    for metric in METRICS.values():
        assert metric.tasks and set(metric.tasks) <= set(TASKS)
    assert is_percent("accuracy") and is_percent("macro_f1")
    assert not is_percent("auc") and not is_percent("loss")


@pytest.mark.parametrize("name", OF_CLASSES)
@pytest.mark.parametrize("seed", range(6))
def test_classes(name, seed):
    """Some clients have one class only, and some have all rows real."""
    draw = np.random.default_rng(seed)
    size, classes = [(24, 4), (1, 1), (9, 2), (16, 3), (23, 4), (5, 1)][seed]
    logits = draw.normal(scale=2, size=(size, CLASSES))
    targets = draw.permutation(CLASSES)[:classes][draw.integers(0, classes, size)]
    expected = OF_CLASSES[name](np.float32(logits), targets.astype(np.int32))
    np.testing.assert_allclose(
        padded(name, logits, targets.astype(np.int32)), expected, rtol=2e-5, atol=1e-6
    )


SCORES = st.integers(-2, 2)
QUICKLY = hypothesis.settings(max_examples=60, deadline=None, derandomize=True)


@QUICKLY
@hypothesis.given(st.lists(st.tuples(SCORES, st.integers(0, 1)), min_size=1, max_size=ROWS))
def test_ties_of_two_classes(examples):
    """The logits (0, s) have log-odds of exactly s, so that equal ones are ties."""
    scores, targets = (np.array(column) for column in zip(*examples, strict=True))
    logits = np.stack([0.0 * scores, scores, -30.0 + 0 * scores, -30.0 + 0 * scores], axis=-1)
    expected = np.nan
    if len(set(targets)) == 2:
        expected = sklearn.metrics.roc_auc_score(targets, scores)
    found = padded("auc", logits, targets.astype(np.int32))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@QUICKLY
@hypothesis.given(
    st.lists(
        st.tuples(st.sampled_from(range(3)), st.integers(0, CLASSES - 1)),
        min_size=1,
        max_size=ROWS,
    )
)
def test_padding_and_equal_examples(examples):
    """Three different outputs, so that most pairs are ties in every class."""
    kinds, targets = (np.array(column) for column in zip(*examples, strict=True))
    logits = np.float32(np.random.default_rng(3).normal(size=(3, CLASSES)))[kinds]
    for name, reference in OF_CLASSES.items():
        expected = reference(logits, targets.astype(np.int32))
        found = padded(name, logits, targets.astype(np.int32))
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6, err_msg=name)


def test_confident_probabilities_are_no_ties():
    """In float32 all of these probabilities are 1, and their ranks are right nevertheless."""
    logits = np.zeros((4, CLASSES))
    logits[:, 0] = [20, 21, 22, 23]
    targets = np.array([1, 1, 0, 0], np.int32)
    assert padded("auc", logits, targets) == 1.0
    assert padded("auc", logits, 1 - targets) == 0.0


@pytest.mark.parametrize("name", METRICS)
def test_without_examples_nothing_is_defined(name):
    shape = (0,) if "regression" in METRICS[name].tasks else (0, CLASSES)
    assert np.isnan(padded(name, np.zeros(shape), np.zeros(0, np.int32)))


@pytest.mark.parametrize("seed", range(3))
def test_labels(seed):
    """The third label applies to no example, and is predicted for none."""
    draw = np.random.default_rng(seed)
    logits = draw.normal(size=(19, CLASSES))
    targets = draw.integers(0, 2, (19, CLASSES)).astype(np.int32)
    targets[:, 2], logits[:, 2] = 0, -np.abs(logits[:, 2])
    logits = np.round(logits, 1)  # ties
    some = [0, 1, 3]
    area = sklearn.metrics.roc_auc_score(targets[:, some], logits[:, some], average="macro")
    f1 = sklearn.metrics.f1_score(targets, logits > 0, average="macro", zero_division=np.nan)
    errors = (special.expit(logits) - targets) ** 2
    expected = {"auc": area, "macro_f1": f1, "brier": errors.mean()}
    for name, value in expected.items():
        np.testing.assert_allclose(padded(name, logits, targets), value, rtol=2e-5, err_msg=name)


@pytest.mark.parametrize("name", OF_NUMBERS)
@pytest.mark.parametrize("size", [1, 2, 17, ROWS])
@pytest.mark.parametrize("constant", [False, True])
def test_numbers(name, size, constant):
    draw = np.random.default_rng(size)
    predictions = np.float32(draw.normal(50, 10, size))
    targets = np.float32(0.1 + 0 * predictions if constant else draw.normal(50, 10, size))
    expected = OF_NUMBERS[name](predictions, targets)
    np.testing.assert_allclose(padded(name, predictions, targets), expected, rtol=1e-4)


@QUICKLY
@hypothesis.given(st.lists(st.lists(SCORES, min_size=4, max_size=4), min_size=1, max_size=ROWS))
def test_rankings_with_ties(scores):
    scores, unread = np.array(scores, np.float32), np.zeros(len(scores), np.int32)
    for name, reference in OF_RANKINGS.items():
        found = padded(name, scores, unread)
        np.testing.assert_allclose(found, reference(scores, unread), rtol=1e-5, err_msg=name)


def test_many_examples_are_exact():
    """The number of pairs is far beyond the whole numbers of float32."""
    draw = np.random.default_rng(0)
    scores, targets = draw.integers(0, 5000, 20_000), draw.integers(0, 2, 20_000)
    logits = jnp.stack([jnp.zeros(len(scores)), jnp.asarray(scores / 1000, jnp.float32)], axis=-1)
    found = program("auc")(logits, targets, np.ones(len(scores), bool))
    expected = sklearn.metrics.roc_auc_score(targets, scores)
    np.testing.assert_allclose(float(found), expected, rtol=2e-6)
