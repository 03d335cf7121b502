"""Partitions: every example to exactly one client, what each promises, and what it refuses."""

import hashlib
import re

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
def test_iid_partitions_everything_evenly(labels, num_clients, seed):
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
@given(label_arrays, st.integers(1, 20), st.integers(1, 8), st.integers(0, 2**32))
def test_pathological_unbalanced_differs_in_numbers_only(labels, num_clients, per_client, seed):
    try:
        even = partition.pathological(labels, num_clients, per_client, seed)
    except UserError as refusal:
        with pytest.raises(UserError, match=re.escape(str(refusal))):
            partition.pathological(labels, num_clients, per_client, seed, balanced=False)
        return
    clients = partition.pathological(labels, num_clients, per_client, seed, balanced=False)
    assert_partition(clients, labels)
    assert all(len(np.unique(labels[rows])) == per_client for rows in clients)
    for label in np.unique(labels):
        holders = [
            sum(label in labels[rows] for rows in partitioned) for partitioned in (even, clients)
        ]
        assert holders[0] == holders[1]


def test_pathological_unbalanced_fractions_are_unequal_but_not_extreme():
    labels = np.repeat(np.arange(10), 1000)
    clients = partition.pathological(labels, 100, 2, 0, balanced=False)
    shares = np.array([share for rows in clients for share in np.bincount(labels[rows]) if share])
    assert len(shares) == 200
    assert shares.min() >= 10 and shares.max() <= 3 * 1000 / 20
    assert shares.std() > 15


@fast
@given(label_arrays, st.integers(1, 20), st.integers(1, 5), st.integers(0, 2**32))
def test_shards_are_equal_and_ordered_by_label(labels, num_clients, per_client, seed):
    if num_clients * per_client > len(labels):
        with pytest.raises(UserError, match="num_clients|shards_per_client|at most"):
            partition.shards(labels, num_clients, per_client, seed)
        return
    clients = partition.shards(labels, num_clients, per_client, seed)
    assert len(clients) == num_clients
    assert_partition(clients, labels)
    sizes = [len(rows) for rows in clients]
    assert max(sizes) - min(sizes) <= per_client
    # Cutting C classes into shards leaves at most C - 1 shards of more than one class.
    classes = sum(len(np.unique(labels[rows])) for rows in clients)
    assert classes <= num_clients * per_client + len(np.unique(labels)) - 1


@fast
@given(
    label_arrays,
    st.integers(1, 20),
    st.floats(0, 10),
    st.sampled_from([partition.quantity_log_normal, partition.quantity_power_law]),
    st.integers(0, 2**32),
    st.one_of(st.none(), st.integers(1, 5)),
)
def test_quantities_reach_their_minimum_or_refuse(labels, num_clients, spread, by, seed, min_size):
    if num_clients * (min_size or 1) > len(labels):
        with pytest.raises(UserError, match="at most|use min_size"):
            by(labels, num_clients, spread, seed, min_size)
        return
    clients = by(labels, num_clients, spread, seed, min_size)
    assert len(clients) == num_clients
    assert_partition(clients, labels)
    assert min(map(len, clients)) >= (min_size or 1)
    if spread == 0:
        sizes = [len(rows) for rows in clients]
        assert max(sizes) - min(sizes) <= 1


def test_quantities_follow_their_laws():
    labels = np.zeros(100_000, int)
    sizes = [len(rows) for rows in partition.quantity_log_normal(labels, 1000, 0.7, 0, min_size=1)]
    assert np.std(np.log(sizes)) == pytest.approx(0.7, rel=0.1)
    sizes = sorted(map(len, partition.quantity_power_law(labels, 50, 1.5, 0, min_size=1)))[::-1]
    exact = np.arange(1, 51) ** -1.5
    np.testing.assert_allclose(sizes, 1 + (100_000 - 50) * exact / exact.sum(), atol=1)


@fast
@given(
    label_arrays,
    st.integers(1, 20),
    st.integers(1, 6),
    st.integers(0, 2**32),
    st.sampled_from([None, np.array([0, 1, 0, 1, 2, 2, 0, 3])]),
)
def test_groups_share_their_classes_and_no_others(labels, num_clients, count, seed, superclasses):
    try:
        clients = partition.groups(labels, num_clients, count, seed, superclasses)
    except UserError:
        kinds = len(np.unique(labels if superclasses is None else superclasses[labels]))
        # A group may have fewer examples than clients; then one of its classes has.
        scarce = np.unique(labels, return_counts=True)[1].min() < -(-num_clients // count)
        assert count > min(kinds, num_clients) or num_clients > len(labels) or scarce
        return
    assert len(clients) == num_clients
    assert_partition(clients, labels)
    kinds = labels if superclasses is None else superclasses[labels]
    held = [
        set(np.concatenate([kinds[rows] for rows in clients[group::count]]).tolist())
        for group in range(count)
    ]
    assert sum(map(len, held)) == len(np.unique(kinds))
    for group in range(count):
        sizes = [len(rows) for rows in clients[group::count]]
        assert max(sizes) - min(sizes) <= 1


def test_clients_of_a_group_have_one_distribution():
    labels = np.repeat(np.arange(6), 1000)
    clients = partition.groups(labels, 9, 3, 0)
    for group in range(3):
        counts = [np.bincount(labels[rows], minlength=6) for rows in clients[group::3]]
        assert np.ptp(counts, axis=0).max() < 100


SETTINGS = dict(
    alpha=0.1,
    classes_per_client=2,
    balanced=True,
    shards_per_client=2,
    size_sigma=1.0,
    size_exponent=1.0,
    num_groups=4,
    superclasses=None,
    min_size=None,
)
GOLDEN = {
    "iid": "3859e32ac78f59de",
    "quantity_log_normal": "dc58a6ccb11dd915",
    "quantity_power_law": "d6b4d1d9bf9cb2e8",
    "pathological": "a972687472780d2f",
    "shards": "4c2a08ed3c2f4733",
    "groups": "3ffc488e863b9225",
    "dirichlet": "f6e837ef6840f90f",
    "dirichlet_by_client": "c965f53acfc43f89",
    "dirichlet_balanced": "5a1d2beb59897506",
    "dirichlet_extended": "b7858f3536b6577e",
}


def test_every_partition_has_a_golden():
    assert set(GOLDEN) == set(partition.PARTITIONS)
    read = {setting for name in GOLDEN for setting in partition.settings_of(name)}
    assert read == set(SETTINGS)


@pytest.mark.parametrize("name", GOLDEN)
def test_partitions_of_digits_never_change(name):
    """Published numbers depend on these: a new value here means a new name, not a new golden."""
    clients = partition.make_partition(name, sources.load_digits().targets, 20, 0, **SETTINGS)
    assert fingerprint(clients) == GOLDEN[name]


@pytest.mark.parametrize("name", partition.PARTITIONS)
def test_the_seed_decides(name):
    labels = sources.load_digits().targets

    def fingerprint_of(seed):
        return fingerprint(
            partition.make_partition(name, labels, 8, seed, **SETTINGS | {"alpha": 0.3})
        )

    assert fingerprint_of(3) == fingerprint_of(3)
    assert fingerprint_of(3) != fingerprint_of(4)


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
    "a class without a client": (
        lambda: partition.pathological(LABELS, 1, 3, 0),
        "classes_per_client=4",
    ),
    "too few examples": (lambda: partition.pathological(LABELS, 40, 4, 0), "at most 10 clients"),
    "no shard": (lambda: partition.shards(LABELS, 4, 0, 0), "shards_per_client must be"),
    "too many shards": (lambda: partition.shards(LABELS, 4, 11, 0), "shards_per_client=10"),
    "sigma below 0": (lambda: partition.quantity_log_normal(LABELS, 4, -1, 0), "size_sigma must"),
    "sigma nan": (
        lambda: partition.quantity_log_normal(LABELS, 4, float("nan"), 0),
        "size_sigma must",
    ),
    "exponent too large": (
        lambda: partition.quantity_power_law(LABELS, 4, 11, 0),
        "size_exponent must be from 0 to 10",
    ),
    "least 0 of a quantity": (
        lambda: partition.quantity_power_law(LABELS, 4, 1, 0, min_size=0),
        "min_size must be",
    ),
    "least too large for a quantity": (
        lambda: partition.quantity_log_normal(LABELS, 4, 1, 0, min_size=11),
        "use min_size=10 or at most 3 clients",
    ),
    "no group": (lambda: partition.groups(LABELS, 4, 0, 0), "num_groups must be"),
    "more groups than classes": (lambda: partition.groups(LABELS, 9, 5, 0), "at most 4 groups"),
    "more groups than clients": (lambda: partition.groups(LABELS, 3, 4, 0), "at most 3 groups"),
    "more groups than superclasses": (
        lambda: partition.groups(LABELS, 9, 3, 0, np.array([0, 0, 1, 1])),
        "2 superclasses",
    ),
    "more clients than a group's examples": (
        lambda: partition.groups(np.repeat([0, 1], [2, 38]), 20, 2, 0),
        "fewer num_clients",
    ),
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
