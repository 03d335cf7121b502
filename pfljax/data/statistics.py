"""Statistics of a data set's clients: sizes, class counts and distances between clients."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.cluster import hierarchy
from scipy.spatial import distance

from pfljax.data.dataset import FederatedDataset

# For more clients, computing all pairs takes minutes and gigabytes.
_MOST_COMPARED = 1000


class Statistics(NamedTuple):
    """Statistics of `N` clients, held-out ones last.

    Distances are Jensen-Shannon distances, the square root of the divergence in bits: 0 between
    clients with equal label distributions, 1 between clients without a common class.

    Attributes:
      sizes: `{split: [N] int64}`, numbers of examples, for the splits train, validation and test.
      counts: `[N, C]` int64, the number of each client's examples of each class in all splits; `C`
        is 0 if targets are not classes.
      compared: `[M]` int64, the clients with known distances: all, or a thousand of them at equal
        intervals; none if targets are not classes. Similar clients are neighbours.
      distances: `[M, M]` float64, distances between these clients' label distributions, in [0, 1].
      to_pool: `[N]` float64, distances between each client's label distribution and that of all
        examples; empty if targets are not classes.
    """

    sizes: dict[str, np.ndarray]
    counts: np.ndarray
    compared: np.ndarray
    distances: np.ndarray
    to_pool: np.ndarray

    @property
    def totals(self) -> np.ndarray:
        """`[N]` int64, the number of each client's examples."""
        return sum(self.sizes.values())

    @property
    def mean_distance(self) -> float:
        """The mean distance between two different clients; NaN if there are none."""
        pairs = len(self.compared) * (len(self.compared) - 1)
        return float(self.distances.sum() / pairs) if pairs else float("nan")


def measure(dataset: FederatedDataset) -> Statistics:
    """Computes the statistics of a data set's clients.

    Args:
      dataset: A federated data set; distances are computed if its targets are classes.

    Returns:
      The statistics.

    >>> from pfljax import data
    >>> found = measure(data.load(name="digits", partition="iid", num_clients=10))
    >>> found.counts.sum(), found.distances.shape, found.mean_distance < 0.2
    (np.int64(1797), (10, 10), True)
    """
    splits = {name: getattr(dataset, name) for name in ("train", "validation", "test")}
    sizes = {name: split.sizes.astype(np.int64) for name, split in splits.items()}
    nothing = np.zeros(0, np.int64)
    if dataset.task != "classification":
        counts = np.zeros((dataset.num_clients, 0), np.int64)
        return Statistics(sizes, counts, nothing, np.zeros((0, 0)), np.zeros(0))
    counts = _count(dataset)
    shares = counts / counts.sum(axis=1, keepdims=True)
    pool = counts.sum(axis=0, keepdims=True) / counts.sum()
    to_pool = _in_bits(distance.cdist(shares, pool, "jensenshannon")[:, 0])
    number = min(dataset.num_clients, _MOST_COMPARED)
    compared = np.arange(number) * dataset.num_clients // number
    pairs = _in_bits(distance.pdist(shares[compared], "jensenshannon"))
    order = hierarchy.leaves_list(hierarchy.average(pairs)) if number > 1 else np.arange(number)
    distances = distance.squareform(pairs) if number > 1 else np.zeros((number, number))
    return Statistics(sizes, counts, compared[order], distances[np.ix_(order, order)], to_pool)


def _count(dataset: FederatedDataset) -> np.ndarray:
    """Returns `[N, C]` int64 examples of each class; a client's rows are consecutive."""
    starts = dataset.train.offsets.astype(np.int64)
    ends = dataset.test.offsets.astype(np.int64) + dataset.test.sizes
    return np.array(
        [
            np.bincount(dataset.targets[start:end], minlength=dataset.num_classes)
            for start, end in zip(starts, ends, strict=True)
        ]
    )


def _in_bits(distances: np.ndarray) -> np.ndarray:
    # Rounding can make the divergence of equal distributions negative, with a NaN as its root.
    return np.clip(np.nan_to_num(distances / np.sqrt(np.log(2)), nan=0.0), 0, 1)
