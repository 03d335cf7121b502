"""Assignment of clients to processes, for populations on the host: client `i` to process `i % P`.

Clients are trained and evaluated by the process that owns them, so that no state and no example is
sent between hosts. The cohort is still sampled uniformly from all clients: the number of clients of
a process differs from round to round, and each process has a capacity above the mean.
"""

from __future__ import annotations

import jax
import numpy as np

from pfljax.engine import sampling


def kept_here(table: np.ndarray) -> np.ndarray:
    """Returns `[num_clients]`, a table of all clients with -1 for those of other processes."""
    own = np.arange(len(table)) % jax.process_count() == jax.process_index()
    return np.where(own, table, -1).astype(table.dtype)


def capacity(plan: sampling.CohortPlan, num_processes: int) -> int:
    """Returns the capacity of a process, in clients of a cohort.

    Clients beyond it are dropped, with a probability of at most `OVERFLOW_PROBABILITY`.

    Example:
      >>> plan = sampling.CohortPlan(num_clients=10_000_000, size=10_240)
      >>> capacity(plan, 1), capacity(plan, 32)
      (10240, 442)
    """
    kept = -(-plan.num_clients // num_processes)
    most = min(kept, plan.capacity)
    if num_processes == 1 or most == kept == plan.capacity:
        return most
    allowed = 1 - sampling.OVERFLOW_PROBABILITY / num_processes
    from scipy import stats  # imported here, as it takes a third of a second

    return min(most, int(stats.hypergeom.ppf(allowed, plan.num_clients, kept, plan.capacity)) + 1)


def group_by_process(ids: np.ndarray, num_processes: int, capacity: int) -> np.ndarray:
    """Groups clients by the process that owns them.

    Args:
      ids: `[n]` int32; negative ids are padding.
      num_processes: `P`.
      capacity: The capacity of each process; clients beyond it are dropped.

    Returns:
      `[P, capacity]` int32, padded with -1.

    Example:
      >>> group_by_process(np.array([4, 1, -1, 2]), 2, 3)
      array([[ 4,  2, -1],
             [ 1, -1, -1]], dtype=int32)
    """
    found = np.full((num_processes, capacity), -1, np.int32)
    for process in range(num_processes):
        kept = ids[(ids >= 0) & (ids % num_processes == process)][:capacity]
        found[process, : len(kept)] = kept
    return found
