"""Partitions: every example to exactly one client, what each promises, and what it refuses."""

import hashlib
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pfljax.data import partition, sources
from pfljax.errors import UserError

label_arrays = st.integers(1, 8).flatmap(
    lambda classes: st.lists(st.integers(0, classes - 1), min_size=1, max_size=200).map(np.array)
)
# Generous to a machine shared with others; none of these takes more than milliseconds.
fast = settings(max_examples=100, deadline=None)


def assert_partition(clients, labels):
    for rows in clients:
        assert np.all(np.diff(rows) > 0)
    np.testing.assert_array_equal(np.sort(np.concatenate(clients)), np.arange(len(labels)))


def fingerprint(clients):
    digest = hashlib.sha256()
    for rows in clients:
        digest.update(f"{len(rows)}:".encode() + rows.astype("<i8").tobytes())
    return digest.hexdigest()[:16]


@fast
@given(label_arrays, st.integers(1, 20), st.integers(0, 2**32))
def test_iid_deals_everything_evenly(labels, num_clients, seed):
    num_clients = min(num_clients, len(labels))
    clients = partition.iid(labels, num_clients, seed)
    assert len(clients) == num_clients
    assert_partition(clients, labels)
    sizes = [len(rows) for rows in clients]
    assert max(sizes) - min(sizes) <= 1


@fast
@given(label_arrays, st.integers(1, 20), st.integers(1, 8), st.integers(0, 2**32))
def test_pathological_keeps_its_promise_or_refuses(labels, num_clients, per_client, seed):
    num_classes, scarcest = len(np.unique(labels)), np.unique(labels, return_counts=True)[1].min()
    places = num_clients * per_client
    feasible = (
        num_clients <= len(labels)
        and per_client <= num_classes <= places
        and -(-places // num_classes) <= scarcest
    )
    try:
        clients = partition.pathological(labels, num_clients, per_client, seed)
    except UserError:
        assert not feasible
        return
    assert len(clients) == num_clients
    assert_partition(clients, labels)
    held = [set(labels[rows].tolist()) for rows in clients]
    assert all(len(classes) == per_client for classes in held)
    for label in np.unique(labels):
        shares = [np.sum(labels[rows] == label) for rows in clients]
        shares = [share for share in shares if share]
        assert max(shares) - min(shares) <= 1
        assert len(shares) in (places // num_classes, -(-places // num_classes))


@fast
@given(
    label_arrays,
    st.integers(1, 20),
    st.floats(1e-3, 1e3),
    st.integers(0, 2**32),
    st.integers(1, 5),
)
def test_dirichlet_keeps_its_promise_or_refuses(labels, num_clients, alpha, seed, least):
    try:
        clients = partition.dirichlet(labels, num_clients, alpha, seed, least)
    except UserError:
        return
    assert len(clients) == num_clients
    assert_partition(clients, labels)
    assert min(map(len, clients)) >= least


def test_dirichlet_gives_full_clients_no_more_of_a_class():
    labels = np.repeat(np.arange(10), 100)
    for seed in range(20):
        clients = partition.dirichlet(labels, 5, 0.1, seed, least=1)
        counts = np.array([np.bincount(labels[rows], minlength=10) for rows in clients])
        before = np.cumsum(counts, axis=1) - counts
        assert not np.any(counts[before >= 200])


def test_dirichlet_follows_alpha():
    labels = np.repeat(np.arange(10), 1000)

    def classes_per_client(alpha):
        clients = partition.dirichlet(labels, 10, alpha, 0, least=1)
        return np.mean([len(np.unique(labels[rows])) for rows in clients])

    assert classes_per_client(0.05) < classes_per_client(0.5) < classes_per_client(100.0)
    for rows in partition.dirichlet(labels, 10, 1e6, 0):
        assert np.all(np.abs(np.bincount(labels[rows]) - 100) <= 2)


@pytest.mark.parametrize("alpha", [1e-300, 1e-9, 1e9])
def test_dirichlet_stands_extreme_alphas(alpha):
    labels = np.repeat(np.arange(4), 50)
    assert_partition(partition.dirichlet(labels, 2, alpha, 0, least=1), labels)


def test_dirichlet_ends_within_seconds_for_many_clients():
    labels = np.random.default_rng(0).integers(0, 10, 60000)
    start = time.monotonic()
    with pytest.raises(UserError) as refusal:
        partition.dirichlet(labels, 500, 0.1, 0)
    assert time.monotonic() - start < 20
    message = str(refusal.value)
    # The advice has been tried, so each part of it must work.
    advised = {
        key: float(message.split(f"{key}=")[-1].split(" ")[0].rstrip("."))
        for key in ("alpha", "num_clients", "least")
    }
    partition.dirichlet(labels, 500, advised["alpha"], 0)
    partition.dirichlet(labels, int(advised["num_clients"]), 0.1, 0)
    clients = partition.dirichlet(labels, 500, 0.1, 0, least=int(advised["least"]))
    assert min(map(len, clients)) == advised["least"]


GOLDEN = {
    "iid": (lambda labels: partition.iid(labels, 20, 0), "3859e32ac78f59de"),
    "pathological": (lambda labels: partition.pathological(labels, 20, 2, 0), "a972687472780d2f"),
    "dirichlet": (lambda labels: partition.dirichlet(labels, 20, 0.1, 0), "f6e837ef6840f90f"),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_partitions_of_digits_never_change(name):
    """Published numbers depend on these: a new value here means a new name, not a new golden."""
    deal, expected = GOLDEN[name]
    assert fingerprint(deal(sources.load_digits().targets)) == expected


@pytest.mark.parametrize(
    "deal",
    [
        lambda labels, seed: partition.iid(labels, 7, seed),
        lambda labels, seed: partition.pathological(labels, 7, 3, seed),
        lambda labels, seed: partition.dirichlet(labels, 7, 0.3, seed),
    ],
)
def test_the_seed_decides(deal):
    labels = sources.load_digits().targets
    assert fingerprint(deal(labels, 3)) == fingerprint(deal(labels, 3))
    assert fingerprint(deal(labels, 3)) != fingerprint(deal(labels, 4))


LABELS = np.repeat(np.arange(4), 10)
REFUSED = {
    "no clients": (lambda: partition.iid(LABELS, 0, 0), "num_clients must be"),
    "half a client": (lambda: partition.iid(LABELS, 2.5, 0), "num_clients must be"),
    "more clients than examples": (lambda: partition.iid(LABELS, 41, 0), "at most 40 clients"),
    "negative seed": (lambda: partition.iid(LABELS, 2, -1), "seed must be"),
    "labels that are not numbers": (lambda: partition.iid(LABELS * 0.5, 2, 0), "whole-number"),
    "labels of two axes": (lambda: partition.iid(LABELS[:, None], 2, 0), "shape (40, 1)"),
    "no class per client": (lambda: partition.pathological(LABELS, 4, 0, 0), "at least 1"),
    "too many classes": (lambda: partition.pathological(LABELS, 4, 5, 0), "use at most 4"),
    "a class for nobody": (lambda: partition.pathological(LABELS, 1, 3, 0), "classes_per_client=4"),
    "too few examples": (lambda: partition.pathological(LABELS, 40, 4, 0), "at most 10 clients"),
    "alpha 0": (lambda: partition.dirichlet(LABELS, 4, 0.0, 0), "alpha must be"),
    "alpha nan": (lambda: partition.dirichlet(LABELS, 4, float("nan"), 0), "alpha must be"),
    "alpha infinite": (lambda: partition.dirichlet(LABELS, 4, float("inf"), 0), "alpha must be"),
    "least 0": (lambda: partition.dirichlet(LABELS, 4, 1.0, 0, least=0), "least must be"),
    "least too large": (lambda: partition.dirichlet(LABELS, 4, 1.0, 0, least=11), "least=10"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_arguments_that_make_no_sense(case):
    call, message = REFUSED[case]
    with pytest.raises(UserError) as refusal:
        call()
    assert message in str(refusal.value)


def test_the_advice_of_the_pathological_partition_works():
    partition.pathological(LABELS, 10, 4, 0)
    partition.pathological(LABELS, 1, 4, 0)
