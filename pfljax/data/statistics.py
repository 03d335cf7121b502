"""How a data set lies over its clients: how much each has of what, and how far apart they are."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.cluster import hierarchy
from scipy.spatial import distance

from pfljax.data.dataset import FederatedDataset

# All pairs of more clients take minutes and gigabytes.
_MOST_COMPARED = 1000


class Statistics(NamedTuple):
    """What the clients have; `N` clients, the unseen ones last.

    The distance is Jensen and Shannon's, the square root of their divergence in bits: 0 between
    clients with the same shares of each class, 1 between clients without a common class.

    Attributes:
      sizes: `{split: [N] int64}` examples, for the splits train, validation and test.
      counts: `[N, C]` int64, each client's examples of each class, all splits together; `C` is 0
        where targets are no classes.
      compared: `[M]` int64, the clients between which distances are known: all, or a thousand of
        them at equal intervals; none where targets are no classes. Similar ones are neighbours.
      distances: `[M, M]` float64, between the label distributions of those clients, in [0, 1].
      to_pool: `[N]` float64, between each client's label distribution and that of all examples;
        empty where targets are no classes.
    """

    sizes: dict[str, np.ndarray]
    counts: np.ndarray
    compared: np.ndarray
    distances: np.ndarray
    to_pool: np.ndarray

    @property
    def totals(self) -> np.ndarray:
        """`[N]` int64, each client's examples."""
        return sum(self.sizes.values())

    @property
    def mean_distance(self) -> float:
        """The mean distance of two different clients; NaN where there are none."""
        pairs = len(self.compared) * (len(self.compared) - 1)
        return float(self.distances.sum() / pairs) if pairs else float("nan")


def measure(dataset: FederatedDataset) -> Statistics:
    """Counts what the clients have, and measures how far apart they are.

    Args:
      dataset: any; distances are measured where its targets are classes.

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
    """Returns `[N, C]` int64 examples of each class; a client's rows follow one another."""
    starts = dataset.train.offsets.astype(np.int64)
    ends = dataset.test.offsets.astype(np.int64) + dataset.test.sizes
    return np.array(
        [
            np.bincount(dataset.targets[start:end], minlength=dataset.num_classes)
            for start, end in zip(starts, ends, strict=True)
        ]
    )


def _in_bits(distances: np.ndarray) -> np.ndarray:
    # Equal distributions differ by rounding, and the root of something below 0 is NaN.
    return np.clip(np.nan_to_num(distances / np.sqrt(np.log(2)), nan=0.0), 0, 1)
