"""Dirichlet partitions: their properties, minimum sizes, and termination."""

import functools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pfljax.data import partition
from pfljax.data.partition import drawing
from pfljax.errors import UserError

FORMS = {
    "dirichlet": partition.dirichlet,
    "by_client": partition.dirichlet_by_client,
    "extended": functools.partial(partition.dirichlet_extended, classes_per_client=2),
}
ALL_FORMS = {**FORMS, "balanced": partition.dirichlet_balanced}
fast = settings(max_examples=60, deadline=None)
label_arrays = st.integers(1, 8).flatmap(
    lambda classes: st.lists(st.integers(0, classes - 1), min_size=1, max_size=200).map(np.array)
)


def assert_partition(clients, labels, num_clients):
    assert len(clients) == num_clients
    for rows in clients:
        assert np.all(np.diff(rows) > 0)
    np.testing.assert_array_equal(np.sort(np.concatenate(clients)), np.arange(len(labels)))


def counts_of(clients, labels):
    return np.array([np.bincount(labels[rows], minlength=labels.max() + 1) for rows in clients])


@pytest.mark.parametrize("form", FORMS)
@fast
@given(
    label_arrays,
    st.integers(1, 20),
    st.floats(1e-3, 1e3),
    st.integers(0, 2**32),
    st.integers(1, 5),
)
def test_a_form_keeps_its_promise_or_refuses(form, labels, num_clients, alpha, seed, min_size):
    try:
        clients = FORMS[form](labels, num_clients, alpha=alpha, seed=seed, min_size=min_size)
    except UserError:
        return
    assert_partition(clients, labels, num_clients)
    assert min(map(len, clients)) >= min_size
    if form == "extended":
        assert max(len(np.unique(labels[rows])) for rows in clients) <= 2


@fast
@given(label_arrays, st.integers(1, 20), st.floats(1e-3, 1e3), st.integers(0, 2**32))
def test_the_balanced_form_gives_all_clients_equal_sizes(labels, num_clients, alpha, seed):
    if num_clients > len(labels):
        with pytest.raises(UserError, match="use at most"):
            partition.dirichlet_balanced(labels, num_clients, alpha, seed)
        return
    clients = partition.dirichlet_balanced(labels, num_clients, alpha, seed)
    assert_partition(clients, labels, num_clients)
    sizes = [len(rows) for rows in clients]
    assert max(sizes) - min(sizes) <= 1


def test_full_clients_get_no_more_of_a_class():
    labels = np.repeat(np.arange(10), 100)
    for seed in range(20):
        counts = counts_of(partition.dirichlet(labels, 5, 0.1, seed, min_size=1), labels)
        before = np.cumsum(counts, axis=1) - counts
        assert not np.any(counts[before >= 200])


@pytest.mark.parametrize("form", ["dirichlet", "by_client", "balanced"])
def test_alpha_decides_how_many_classes_a_client_has(form):
    labels = np.repeat(np.arange(10), 1000)

    def classes(alpha):
        clients = ALL_FORMS[form](labels, 10, alpha=alpha, seed=0)
        return np.mean([len(np.unique(labels[rows])) for rows in clients])

    assert classes(0.05) < classes(0.5) < classes(100.0)


@pytest.mark.parametrize("form", ["dirichlet", "by_client"])
def test_a_large_alpha_is_even(form):
    labels = np.repeat(np.arange(10), 1000)
    for rows in ALL_FORMS[form](labels, 10, alpha=1e6, seed=0):
        assert np.all(np.abs(np.bincount(labels[rows]) - 100) <= 2)


def test_mixtures_follow_the_pool():
    """With unequal classes and a large alpha, every client's mixture is the pool's."""
    labels = np.repeat([0, 1, 2], [6000, 3000, 1000])
    for form in ("by_client", "balanced"):
        counts = counts_of(ALL_FORMS[form](labels, 10, alpha=1e6, seed=0), labels)
        np.testing.assert_allclose(counts, np.tile([600, 300, 100], (10, 1)), atol=100)


def test_the_extended_form_splits_a_class_over_its_holders_only():
    labels = np.repeat(np.arange(10), 100)
    even = partition.dirichlet_extended(labels, 20, 1e6, 2, 0)
    for counts in counts_of(even, labels):
        assert np.all(np.isin(counts, (0, 25)))
    skewed = counts_of(partition.dirichlet_extended(labels, 20, 0.5, 2, 0), labels)
    assert skewed.max() > 50 and (skewed > 0).sum(axis=1).max() <= 2


@pytest.mark.parametrize("form", ALL_FORMS)
@pytest.mark.parametrize("alpha", [5e-324, 1e-300, 1e-9, 1e9])
def test_extreme_alphas(form, alpha):
    labels = np.repeat(np.arange(4), 50)
    assert_partition(ALL_FORMS[form](labels, 2, alpha=alpha, seed=0), labels, 2)


# ending


@pytest.fixture
def draws(monkeypatch):
    """Counts the draws that are made."""
    made = {"attempts": 0, "redraws": 0}
    real = drawing.log_gamma

    def log_gamma(alpha, rng):
        made["redraws"] += 1
        return real(alpha, rng)

    class Generator:
        def __init__(self, rng):
            self._rng = rng

        def dirichlet(self, alpha):
            made["attempts"] += 1
            return self._rng.dirichlet(alpha)

    real_counts = drawing.draw_counts

    def draw_counts(sizes, num_clients, alpha, rng, min_size, attempts):
        return real_counts(sizes, num_clients, alpha, Generator(rng), min_size, attempts)

    monkeypatch.setattr(drawing, "log_gamma", log_gamma)
    monkeypatch.setattr(drawing, "draw_counts", draw_counts)
    return made


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("form", ALL_FORMS)
def test_five_hundred_clients_need_few_draws(form, classes, draws):
    """As many labels as the CIFAR subsets have; PFLlib's loop does not end here."""
    labels = np.repeat(np.arange(classes), 10_000 // classes)
    clients = ALL_FORMS[form](labels, 500, alpha=0.1, seed=0)
    assert_partition(clients, labels, 500)
    assert min(map(len, clients)) >= 10
    assert draws["attempts"] <= drawing.FULL.attempts * classes
    assert draws["redraws"] <= drawing.FULL.redraws


@pytest.mark.parametrize("form", ["dirichlet", "extended"])
def test_what_cannot_be_met_is_refused_with_numbers_that_can(form, draws):
    labels = np.repeat(np.arange(10), 1000)
    request = dict(num_clients=200, alpha=0.01, min_size=40)
    with pytest.raises(UserError) as refusal:
        FORMS[form](labels, **request, seed=0)
    message = str(refusal.value)
    assert "alpha=0.01 gave each of 200 clients 40 examples" in message
    advice = dict(
        re.findall(r"(alpha|num_clients|min_size)=([\d.]*\d)", message.split(": use ")[1])
    )
    assert {"alpha", "num_clients"} <= set(advice)
    # A trial for each alpha, each number of clients and each least size, and the draw itself.
    assert draws["redraws"] <= drawing.FULL.redraws + (14 + 7 + 6) * drawing.FULL.redraws
    for name, value in advice.items():
        changed = request | {name: float(value) if name == "alpha" else int(value)}
        clients = FORMS[form](labels, **changed, seed=0)
        assert min(map(len, clients)) >= changed["min_size"]


@pytest.mark.parametrize("form", FORMS)
def test_an_advised_least_size_works(form):
    labels = np.repeat(np.arange(10), 1000)
    with pytest.raises(UserError) as refusal:
        FORMS[form](labels, 100, alpha=0.1, seed=0, min_size=100)
    advised = re.search(r"min_size=(\d+)", str(refusal.value))
    assert advised, refusal.value
    clients = FORMS[form](labels, 100, alpha=0.1, seed=0, min_size=int(advised[1]))
    assert min(map(len, clients)) >= int(advised[1])


LABELS = np.repeat(np.arange(4), 10)


@pytest.mark.parametrize("form", ALL_FORMS)
@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf"), 1e10])
def test_alphas_that_make_no_sense(form, alpha):
    with pytest.raises(UserError, match="alpha must be above 0"):
        ALL_FORMS[form](LABELS, 4, alpha=alpha, seed=0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "min_size, message", [(0, "min_size must be"), (11, "use min_size=10"), (99, "10")]
)
def test_least_sizes_that_make_no_sense(form, min_size, message):
    with pytest.raises(UserError, match=message):
        FORMS[form](LABELS, 4, alpha=1.0, seed=0, min_size=min_size)


def test_log_gamma_is_gamma():
    rng = np.random.default_rng(0)
    for alpha in (0.1, 1.0, 20.0):
        values = np.exp(drawing.log_gamma(np.full(200_000, alpha), rng))
        assert values.mean() == pytest.approx(alpha, rel=0.03)
        assert values.var() == pytest.approx(alpha, rel=0.05)
