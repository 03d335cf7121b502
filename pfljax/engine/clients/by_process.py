"""Which process keeps which client, where populations lie on hosts: client `i` process `i % P`.

Clients train and are scored by the process that keeps them, so that no state and no example ever
crosses between hosts. The cohort is still drawn uniformly from all clients: how many of a process
are in it differs from round to round, and each has room for more than its even share.
"""

from __future__ import annotations

import jax
import numpy as np
from scipy import stats

from pfljax.engine import sampling


def kept_here(table: np.ndarray) -> np.ndarray:
    """Returns `[num_clients]`, a table of all clients with -1 for those of other processes."""
    own = np.arange(len(table)) % jax.process_count() == jax.process_index()
    return np.where(own, table, -1).astype(table.dtype)


def capacity(plan: sampling.CohortPlan, num_processes: int) -> int:
    """Returns how many clients of a cohort a process has room for.

    Those beyond them are left out, which happens no more often than `OVERFLOW_PROBABILITY` says.

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
    return min(most, int(stats.hypergeom.ppf(allowed, plan.num_clients, kept, plan.capacity)) + 1)


def group_by_process(ids: np.ndarray, num_processes: int, capacity: int) -> np.ndarray:
    """Sorts clients by the process that keeps them.

    Args:
      ids: `[n]`; negative ones are nobody.
      num_processes: `P`.
      capacity: for each process; clients beyond them are left out.

    Returns:
      `[P, capacity]` int32, filled up with -1.

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
