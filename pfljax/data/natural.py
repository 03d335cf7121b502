"""The partition by natural clients: writers, speakers, subjects, domains."""

from __future__ import annotations

import numpy as np

from pfljax.data import checks
from pfljax.errors import UserError

_LEAST = 10


def natural(
    owners: np.ndarray, min_size: int | None = None, num_owners: int = 0, seed: int = 0
) -> list[np.ndarray]:
    """Assigns every owner's examples to one client, in stored order.

    Args:
      owners: `[n]` integers, the owner of each example.
      min_size: The minimum number of examples; owners with fewer are dropped. None means 10.
      num_owners: The number of owners, drawn without replacement from those with enough examples;
        0 uses all of them.
      seed: The seed of the draw.

    Returns:
      One array of row indices for each remaining owner, in the order of the owners' numbers.

    Raises:
      UserError: No owner has enough examples, or fewer than `num_owners` have.

    >>> [rows.tolist() for rows in natural(np.array([7, 2, 7, 7, 2, 5]), min_size=2)]
    [[1, 4], [0, 2, 3]]
    """
    num_owners = checks.whole("data.num_owners", num_owners, 0)
    min_size = _LEAST if min_size is None else checks.whole("min_size", min_size, 1)
    order = np.argsort(owners, kind="stable")
    _, starts = np.unique(owners[order], return_index=True)
    clients = np.split(order, starts[1:])
    enough = [rows for rows in clients if len(rows) >= min_size]
    if not enough:
        largest = max(map(len, clients))
        raise UserError(
            f"No natural client has {min_size} examples; the largest has {largest}: "
            f"use min_size={largest} or less."
        )
    if num_owners > len(enough):
        raise UserError(
            f"data.num_owners is {num_owners}, but {len(enough)} natural clients have at least "
            f"{min_size} examples: use data.num_owners={len(enough)} or less, or 0 for all."
        )
    if num_owners:
        drawn = np.random.default_rng(seed).choice(len(enough), num_owners, replace=False)
        enough = [enough[i] for i in np.sort(drawn)]
    return enough
