"""Statistics of partitions: counts that add up, and distances against their definition."""

import numpy as np
import pytest
from scipy.spatial import distance

from pfljax import data
from pfljax.data import statistics


def toy(counts, **changes):
    """A data set whose clients have the given numbers of each class, all of them for training."""
    counts = np.array(counts)
    sizes = counts.sum(axis=1).astype(np.int32)
    ends = np.cumsum(sizes, dtype=np.int32)
    targets = np.concatenate([np.repeat(np.arange(counts.shape[1]), own) for own in counts])
    none = data.Split(ends, np.zeros_like(sizes))
    return data.FederatedDataset(
        "toy",
        np.zeros((len(targets), 1), np.uint8),
        targets.astype(np.int32),
        data.Split(ends - sizes, sizes),
        none,
        none,
        counts.shape[1],
    )._replace(**changes)


def in_order(found):
    """The distances with the clients back in the order of their ids."""
    back = np.argsort(found.compared)
    return found.distances[np.ix_(back, back)]


def test_counts_take_all_splits_together():
    loaded = data.load(name="digits", unseen_fraction=0.1)
    found = statistics.measure(loaded)
    np.testing.assert_array_equal(found.counts.sum(axis=0), np.bincount(loaded.targets))
    np.testing.assert_array_equal(found.counts.sum(axis=1), found.totals)
    for name in ("train", "validation", "test"):
        np.testing.assert_array_equal(found.sizes[name], getattr(loaded, name).sizes)
    assert found.totals.dtype == np.int64 and np.all(found.counts >= loaded.class_counts())


def test_distances_are_the_root_of_the_divergence_in_bits():
    counts = [[4, 0, 0], [0, 5, 5], [2, 2, 0], [10, 0, 0], [1, 2, 3]]
    found = statistics.measure(toy(counts))
    distances = in_order(found)

    def entropy(shares):
        shares = shares[shares > 0]
        return -np.sum(shares * np.log2(shares))

    shares = np.array(counts) / np.sum(counts, axis=1, keepdims=True)
    for one, first in enumerate(shares):
        for other, second in enumerate(shares):
            divergence = entropy((first + second) / 2) - (entropy(first) + entropy(second)) / 2
            assert distances[one, other] == pytest.approx(np.sqrt(max(divergence, 0)), abs=1e-7)
        pool = np.sum(counts, axis=0) / np.sum(counts)
        assert found.to_pool[one] == pytest.approx(distance.jensenshannon(first, pool, base=2))
    assert distances[0, 1] == 1 and distances[0, 3] == 0
    assert found.mean_distance == pytest.approx(distances.sum() / 20)


def test_nearly_equal_clients_have_a_distance():
    counts = np.full((40, 3), 5_000) + np.arange(40)[:, np.newaxis]
    found = statistics.measure(toy(counts))
    assert np.all(np.isfinite(found.distances)) and found.distances.max() < 1e-3


def test_similar_clients_are_neighbours():
    counts = np.array([[9, 1, 0], [0, 1, 9], [8, 2, 0], [0, 2, 8], [7, 1, 0], [0, 0, 5]])
    compared = statistics.measure(toy(counts)).compared.tolist()
    assert sorted(compared) == list(range(6))
    assert set(compared[:3]) in ({0, 2, 4}, {1, 3, 5})


def test_a_crowd_is_compared_at_equal_intervals():
    counts = np.random.default_rng(0).integers(1, 5, (2500, 4))
    found = statistics.measure(toy(counts))
    assert found.counts.shape == (2500, 4) and found.to_pool.shape == (2500,)
    assert found.distances.shape == (1000, 1000)
    assert set(np.diff(np.sort(found.compared))) == {2, 3}


def test_one_client():
    found = statistics.measure(toy([[3, 4]]))
    assert found.distances.tolist() == [[0]] and found.to_pool.tolist() == [0]
    assert np.isnan(found.mean_distance)


def test_targets_that_are_no_classes_have_sizes_only():
    regression = toy([[3, 4], [1, 2]], task="regression", num_classes=0)
    found = statistics.measure(regression._replace(targets=regression.targets / np.float32(2)))
    assert found.totals.tolist() == [7, 3]
    assert found.counts.shape == (2, 0) and len(found.compared) == len(found.to_pool) == 0
