"""What all partitions share: the labels looked over, and whole numbers of examples dealt out."""

from __future__ import annotations

import numpy as np

from pfljax.data import checks
from pfljax.errors import UserError


def members_by_class(
    labels: np.ndarray, num_clients: int, seed: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Returns the classes there are, and the rows of each, once the arguments make sense.

    Args:
      labels: `[n]` integers.
      num_clients: how many clients the rows are for.
      seed: of the partition.

    Returns:
      `[C]` the classes that have examples, ascending; and for each its row numbers, ascending.

    Raises:
      UserError: the labels are none, or there are more clients than examples.
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
            f"{len(labels)} examples cannot be dealt out to {num_clients} clients: "
            f"use at most {len(labels)} clients."
        )
    classes, inverse = np.unique(labels, return_inverse=True)
    return classes, [np.flatnonzero(inverse == index) for index in range(len(classes))]


def required_size(num_examples: int, num_clients: int, min_size: int | None) -> int:
    """Returns how many examples every client must have, once that many are there.

    Args:
      num_examples: of the pool.
      num_clients: how many clients.
      min_size: what the user asked for; None means 10, or half an even share if that is less.

    Raises:
      UserError: `min_size` makes no sense, or there are not as many examples.

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
    """Splits `total` into whole numbers: `min_size` for everybody, the rest in proportion.

    Args:
      total: at least `min_size` for each weight.
      weights: `[k]` non-negative and finite, not all 0.
      min_size: what everybody gets.

    Returns:
      `[k]` int64 that sum to `total`.

    >>> apportion(10, np.array([6.0, 1.0, 1.0]), min_size=1).tolist()
    [6, 2, 2]
    """
    rest = total - min_size * len(weights)
    exact = rest * (weights / weights.sum())
    sizes = np.floor(exact).astype(np.int64)
    # What rounding down left over goes to those who lost most by it.
    first = np.argsort(sizes - exact, kind="stable")
    sizes[first[: rest - sizes.sum()]] += 1
    return sizes + min_size


def gather(members: list[np.ndarray], counts: np.ndarray, rng: np.random.Generator):
    """Turns numbers of examples into rows, chosen at random within each class.

    Args:
      members: the rows of each of `C` classes.
      counts: `[C, num_clients]`, how many of them go to each client; all of them in all.
      rng: decides which ones.

    Returns:
      `num_clients` arrays of row numbers, int64, ascending.
    """
    pieces = []
    for rows, row_counts in zip(members, counts, strict=True):
        pieces.append(np.split(rng.permutation(rows), np.cumsum(row_counts)[:-1]))
    return [np.sort(np.concatenate(rows)) for rows in zip(*pieces, strict=True)]
