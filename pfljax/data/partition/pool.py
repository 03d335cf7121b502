"""Functions that all partitions share: checks of the labels, and integer splits."""

from __future__ import annotations

import numpy as np

from pfljax.data import checks
from pfljax.errors import UserError


def members_by_class(
    labels: np.ndarray, num_clients: int, seed: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Returns the classes and the rows of each, after checking the arguments.

    Args:
      labels: `[n]` integers, the label of each example.
      num_clients: Number of clients.
      seed: The seed of the partition.

    Returns:
      `[C]` the classes that have examples, ascending, and the row indices of each, ascending.

    Raises:
      UserError: The labels are invalid, or there are more clients than examples.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise UserError(
            f"A partition needs one whole-number label per example, not labels of shape "
            f"{labels.shape} and dtype {labels.dtype}."
        )
    checks.whole("seed", seed, 0)
    if checks.whole("num_clients", num_clients, 1) > len(labels):
        raise UserError(
            f"{len(labels)} examples cannot be partitioned among {num_clients} clients: "
            f"use at most {len(labels)} clients."
        )
    classes, inverse = np.unique(labels, return_inverse=True)
    return classes, [np.flatnonzero(inverse == index) for index in range(len(classes))]


def required_size(num_examples: int, num_clients: int, min_size: int | None) -> int:
    """Returns the minimum number of examples of a client, after checking that it is feasible.

    Args:
      num_examples: Number of examples in the pool.
      num_clients: Number of clients.
      min_size: The user's minimum; None means 10, or half of an equal fraction of all examples if
        that is less.

    Raises:
      UserError: `min_size` is invalid, or there are too few examples.

    >>> required_size(1000, 5, None), required_size(30, 5, None), required_size(30, 5, 6)
    (10, 3, 6)
    """
    if min_size is None:
        return max(1, min(10, num_examples // (2 * num_clients)))
    if checks.whole("min_size", min_size, 1) * num_clients > num_examples:
        clients = num_examples // min_size
        raise UserError(
            f"{num_examples} examples cannot give {num_clients} clients at least {min_size} each: "
            f"use min_size={num_examples // num_clients}"
            + (f" or at most {clients} clients." if clients else ".")
        )
    return int(min_size)


def apportion(total: int, weights: np.ndarray, min_size: int) -> np.ndarray:
    """Splits `total` into integers: `min_size` for each weight, the rest in proportion.

    Args:
      total: The sum, at least `min_size` for each weight.
      weights: `[k]` non-negative and finite, not all 0.
      min_size: The smallest allowed part.

    Returns:
      `[k]` int64 that sum to `total`.

    >>> apportion(10, np.array([6.0, 1.0, 1.0]), min_size=1).tolist()
    [6, 2, 2]
    """
    rest = total - min_size * len(weights)
    exact = rest * (weights / weights.sum())
    sizes = np.floor(exact).astype(np.int64)
    # The remainder of rounding down goes to the weights with the largest fractional parts.
    first = np.argsort(sizes - exact, kind="stable")
    sizes[first[: rest - sizes.sum()]] += 1
    return sizes + min_size


def gather(members: list[np.ndarray], counts: np.ndarray, rng: np.random.Generator):
    """Draws rows for given numbers of examples, uniformly within each class.

    Args:
      members: The rows of each of `C` classes.
      counts: `[C, num_clients]`, the number of examples of each class and client; each row sums to
        the size of the class.
      rng: The random number generator.

    Returns:
      `num_clients` arrays of row indices, int64, ascending.
    """
    pieces = []
    for rows, row_counts in zip(members, counts, strict=True):
        pieces.append(np.split(rng.permutation(rows), np.cumsum(row_counts)[:-1]))
    return [np.sort(np.concatenate(rows)) for rows in zip(*pieces, strict=True)]
