"""How a pool of examples is dealt out to clients: pure functions of the labels and a seed.

Each returns one array of row numbers per client, in ascending order; every example goes to
exactly one client. Each ends: what cannot be met is refused, with numbers that can. `deal` calls
one by name. Shifts of what a client's examples look like or are called are no partitions; they
stand in `pfljax/data/shift.py` and go with any of these.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import numpy as np

from pfljax.data.partition.dirichlet_skew import (
    dirichlet,
    dirichlet_balanced,
    dirichlet_by_client,
    dirichlet_extended,
)
from pfljax.data.partition.label_skew import groups, pathological, shards
from pfljax.data.partition.quantity_skew import iid, quantity_log_normal, quantity_power_law

__all__ = [
    "PARTITIONS",
    "deal",
    "dirichlet",
    "dirichlet_balanced",
    "dirichlet_by_client",
    "dirichlet_extended",
    "groups",
    "iid",
    "pathological",
    "quantity_log_normal",
    "quantity_power_law",
    "settings_of",
    "shards",
]

PARTITIONS: dict[str, Callable[..., list[np.ndarray]]] = {
    "iid": iid,
    "quantity_log_normal": quantity_log_normal,
    "quantity_power_law": quantity_power_law,
    "pathological": pathological,
    "shards": shards,
    "groups": groups,
    "dirichlet": dirichlet,
    "dirichlet_by_client": dirichlet_by_client,
    "dirichlet_balanced": dirichlet_balanced,
    "dirichlet_extended": dirichlet_extended,
}


def settings_of(name: str) -> tuple[str, ...]:
    """Returns the settings that a partition reads, beside the labels, the clients and the seed.

    Args:
      name: a key of `PARTITIONS`.

    >>> settings_of("dirichlet")
    ('alpha', 'min_size')
    """
    common = ("labels", "num_clients", "seed")
    parameters = inspect.signature(PARTITIONS[name]).parameters
    return tuple(setting for setting in parameters if setting not in common)


def deal(
    name: str, labels: np.ndarray, num_clients: int, seed: int, **settings: object
) -> list[np.ndarray]:
    """Deals examples out by the partition of a name.

    Args:
      name: a key of `PARTITIONS`.
      labels: `[n]` integers.
      num_clients: how many clients.
      seed: whole number; the same seed gives the same partition.
      **settings: at least those of `settings_of(name)`; others are ignored.

    Returns:
      `num_clients` arrays of row numbers, int64.

    Raises:
      UserError: the partition refuses its arguments.

    >>> labels = np.repeat(np.arange(4), 5)
    >>> clients = deal("shards", labels, 5, 0, shards_per_client=2, alpha=0.1)
    >>> [len(rows) for rows in clients]
    [4, 4, 4, 4, 4]
    """
    chosen = {setting: settings[setting] for setting in settings_of(name)}
    return PARTITIONS[name](labels=labels, num_clients=num_clients, seed=seed, **chosen)
