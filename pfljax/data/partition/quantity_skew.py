"""Partitions that ignore labels: all clients draw from one pool, with different sizes."""

from __future__ import annotations

import numpy as np

from pfljax.data import checks
from pfljax.data.partition.pool import apportion, members_by_class, required_size


def iid(labels: np.ndarray, num_clients: int, seed: int) -> list[np.ndarray]:
    """Partitions the examples uniformly, with sizes that differ by at most one.

    Args:
      labels: `[n]` integers; only their number is used.
      num_clients: Number of clients.
      seed: A whole number; the same seed gives the same partition.

    Returns:
      `num_clients` arrays of row indices, int64.

    Raises:
      UserError: An argument is invalid, or there are more clients than examples.

    >>> [len(rows) for rows in iid(np.zeros(10, int), num_clients=3, seed=0)]
    [4, 3, 3]
    """
    _, members = members_by_class(labels, num_clients, seed)
    shuffled = np.random.default_rng(seed).permutation(sum(map(len, members)))
    return [np.sort(rows) for rows in np.array_split(shuffled, num_clients)]


def quantity_log_normal(
    labels: np.ndarray, num_clients: int, size_sigma: float, seed: int, min_size: int | None = None
) -> list[np.ndarray]:
    """Partitions the examples uniformly, with log-normal sizes.

    Every client gets `min_size` examples; the others are split in proportion to exp(z), where z is
    normal with standard deviation `size_sigma`.

    Args:
      labels: `[n]` integers; only their number is used.
      num_clients: Number of clients.
      size_sigma: The standard deviation, from 0, which is `iid`, to 10; with 1, the largest of 20
        clients has about six times the examples of the median.
      seed: A whole number; the same seed gives the same partition.
      min_size: The minimum number of examples of a client; None means 10, or half of an equal
        fraction of all examples if that is less.

    Returns:
      `num_clients` arrays of row indices, int64.

    Raises:
      UserError: An argument is invalid, or there are too few examples.

    >>> clients = quantity_log_normal(np.zeros(100, int), 4, size_sigma=1.0, seed=0, min_size=5)
    >>> sum(map(len, clients)), min(map(len, clients)) >= 5
    (100, True)
    """
    _, members = members_by_class(labels, num_clients, seed)
    sigma = checks.number("size_sigma", size_sigma, 0, 10)
    rng = np.random.default_rng(seed)
    weights = np.exp(sigma * rng.standard_normal(num_clients))
    return _split_by_sizes(sum(map(len, members)), weights, min_size, rng)


def quantity_power_law(
    labels: np.ndarray,
    num_clients: int,
    size_exponent: float,
    seed: int,
    min_size: int | None = None,
) -> list[np.ndarray]:
    """Partitions the examples uniformly, with sizes that follow a power law.

    Every client gets `min_size` examples; the others are split in proportion to r^-size_exponent,
    where r = 1, 2, ... is the rank of a client; ranks are drawn at random.

    Args:
      labels: `[n]` integers; only their number is used.
      num_clients: Number of clients.
      size_exponent: The exponent, from 0, which is `iid`, to 10; with 1, the second client has half
        the examples of the first.
      seed: A whole number; the same seed gives the same partition.
      min_size: The minimum number of examples of a client; None means 10, or half of an equal
        fraction of all examples if that is less.

    Returns:
      `num_clients` arrays of row indices, int64.

    Raises:
      UserError: An argument is invalid, or there are too few examples.

    >>> clients = quantity_power_law(np.zeros(113, int), 3, size_exponent=1.0, seed=0, min_size=1)
    >>> sorted(len(rows) for rows in clients)
    [21, 31, 61]
    """
    _, members = members_by_class(labels, num_clients, seed)
    exponent = checks.number("size_exponent", size_exponent, 0, 10)
    rng = np.random.default_rng(seed)
    weights = (1.0 + rng.permutation(num_clients)) ** -exponent
    return _split_by_sizes(sum(map(len, members)), weights, min_size, rng)


def _split_by_sizes(
    total: int, weights: np.ndarray, min_size: int | None, rng: np.random.Generator
) -> list[np.ndarray]:
    sizes = apportion(total, weights, required_size(total, len(weights), min_size))
    return [np.sort(rows) for rows in np.split(rng.permutation(total), np.cumsum(sizes)[:-1])]
