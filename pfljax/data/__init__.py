"""The host's side: where examples come from, who owns them, and how they are laid out.

`load` is the one entry that programs need: a source (`sources`) is dealt out to clients
(`partition`) and each client's examples are split (`split`); or a data set whose clients are
given is read from disk (`formats`). All of it is NumPy, and ends in a `FederatedDataset`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pfljax.data import checks
from pfljax.data.dataset import FederatedDataset, Split
from pfljax.data.formats import load_npz, load_pfllib, save_npz
from pfljax.data.partition import dirichlet, iid, pathological
from pfljax.data.sources import Examples, load_digits, load_fashion_mnist, load_mnist
from pfljax.data.split import assemble
from pfljax.errors import UserError

__all__ = [
    "DATASETS",
    "PARTITIONS",
    "Examples",
    "FederatedDataset",
    "Split",
    "assemble",
    "describe",
    "dirichlet",
    "iid",
    "load",
    "load_digits",
    "load_fashion_mnist",
    "load_mnist",
    "load_npz",
    "load_pfllib",
    "pathological",
    "save_npz",
]

# Pools of examples, which a partition deals out to clients.
_POOLS: dict[str, Callable[[str], Examples]] = {
    "digits": load_digits,
    "mnist": load_mnist,
    "fashion_mnist": load_fashion_mnist,
}
# Data sets whose clients are given.
_NATURAL: dict[str, Callable[..., FederatedDataset]] = {
    "pfllib": load_pfllib,
    "npz": load_npz,
}
DATASETS = {**_POOLS, **_NATURAL}
PARTITIONS = ("iid", "pathological", "dirichlet", "natural")


def load(
    *,
    name: str,
    dir: str = "",
    partition: str = "dirichlet",
    alpha: float = 0.1,
    classes_per_client: int = 2,
    num_clients: int = 20,
    seed: int = 0,
    test_fraction: float = 0.25,
    validation_fraction: float = 0.1,
    unseen_fraction: float = 0.0,
    least: int | None = None,
) -> FederatedDataset:
    """Returns a federated data set by name.

    Args:
      name: a key of `DATASETS`.
      dir: where its files are: a directory for `mnist`, `fashion_mnist` and `pfllib`, a file for
        `npz`; not used for `digits`.
      partition: `iid`, `pathological`, `dirichlet`, or `natural` where the clients are given;
        `pfllib` and `npz` keep their own clients whatever it says.
      alpha: concentration of the `dirichlet` partition.
      classes_per_client: for the `pathological` partition.
      num_clients: how many clients to deal the examples out to.
      seed: decides the partition and the splits.
      test_fraction: of each client's examples; `pfllib` and `npz` have their own test examples.
      validation_fraction: of each client's other examples; `npz` has its own.
      unseen_fraction: of the clients, who never train; `npz` has its own.
      least: examples that the `dirichlet` partition must give every client; None for its rule.

    Returns:
      The federated data set.

    Raises:
      UserError: an argument makes no sense, or the files are absent or damaged.

    >>> data = load(name="digits", partition="iid", num_clients=10)
    >>> data.num_clients, len(data.targets)
    (10, 1797)
    """
    checks.choice("data.name", name, DATASETS)
    checks.choice("data.partition", partition, PARTITIONS)
    if name == "npz":
        return load_npz(dir)
    if name == "pfllib":
        return load_pfllib(
            dir,
            validation_fraction=validation_fraction,
            unseen_fraction=unseen_fraction,
            seed=seed,
        )
    if partition == "natural":
        raise UserError(
            f"{name} has no natural clients: choose the partition iid, pathological or dirichlet."
        )
    examples = _POOLS[name](dir)
    labels = examples.targets
    if partition == "iid":
        clients = iid(labels, num_clients, seed)
    elif partition == "pathological":
        clients = pathological(labels, num_clients, classes_per_client, seed)
    else:
        clients = dirichlet(labels, num_clients, alpha, seed, least)
    return assemble(
        examples,
        clients,
        test_fraction=test_fraction,
        validation_fraction=validation_fraction,
        unseen_fraction=unseen_fraction,
        seed=seed,
    )


def describe(dataset: FederatedDataset) -> str:
    """Returns a few lines of plain text about a data set, for logs.

    Args:
      dataset: the data set.

    Returns:
      Its clients, examples and classes per client, without a final newline.

    >>> print(describe(load(name="digits", partition="iid", num_clients=10)))
    digits: 10 clients (0 unseen), 1797 examples of shape 8x8x1 (uint8) in 10 classes
    training 1210, validation 137, test 450 examples
    examples per client 179 / 180 / 180, training classes per client 10 / 10 / 10 (min/median/max)
    """
    splits = (dataset.train, dataset.validation, dataset.test)
    training, validation, test = (int(split.sizes.sum()) for split in splits)
    shape = "x".join(map(str, dataset.inputs.shape[1:])) or "scalar"
    examples = _spread(sum(split.sizes for split in splits))
    classes = _spread((dataset.class_counts() > 0).sum(axis=1))
    return (
        f"{dataset.name}: {dataset.num_clients} clients ({dataset.num_unseen} unseen), "
        f"{len(dataset.targets)} examples of shape {shape} ({dataset.inputs.dtype}) "
        f"in {dataset.num_classes} classes\n"
        f"training {training}, validation {validation}, test {test} examples\n"
        f"examples per client {examples}, training classes per client {classes} (min/median/max)"
    )


def _spread(values: np.ndarray) -> str:
    return f"{values.min():g} / {np.median(values):g} / {values.max():g}"
