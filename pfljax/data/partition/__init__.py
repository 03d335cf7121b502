"""Partitions of a pool of examples among clients: pure functions of the labels and a seed.

Each function returns one array of row indices per client, in ascending order; every example is
assigned to exactly one client. All functions terminate; infeasible arguments are refused, with
values that work. `make_partition` calls one by name. Feature and concept shifts are not partitions:
see `pfljax/data/shift.py`; they can be combined with any of these.
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
    "make_partition",
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
    """Returns the settings of a partition, other than labels, number of clients and seed.

    Args:
      name: A key of `PARTITIONS`.

    >>> settings_of("dirichlet")
    ('alpha', 'min_size')
    """
    common = ("labels", "num_clients", "seed")
    parameters = inspect.signature(PARTITIONS[name]).parameters
    return tuple(setting for setting in parameters if setting not in common)


def make_partition(
    name: str, labels: np.ndarray, num_clients: int, seed: int, **settings: object
) -> list[np.ndarray]:
    """Partitions examples by the name of a partition.

    Args:
      name: A key of `PARTITIONS`.
      labels: `[n]` integers, the label of each example.
      num_clients: Number of clients.
      seed: A whole number; the same seed gives the same partition.
      **settings: The settings of `settings_of(name)`; others are ignored.

    Returns:
      `num_clients` arrays of row indices, int64.

    Raises:
      UserError: The partition refuses its arguments.

    >>> labels = np.repeat(np.arange(4), 5)
    >>> clients = make_partition("shards", labels, 5, 0, shards_per_client=2, alpha=0.1)
    >>> [len(rows) for rows in clients]
    [4, 4, 4, 4, 4]
    """
    chosen = {setting: settings[setting] for setting in settings_of(name)}
    return PARTITIONS[name](labels=labels, num_clients=num_clients, seed=seed, **chosen)
