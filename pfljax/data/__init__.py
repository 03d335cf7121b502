"""The host's side: where examples come from, who owns them, and how they are laid out.

`load` is the one entry that programs need: a source (`sources`) is dealt out to clients
(`partition`) and each client's examples are split (`split`); or a data set whose clients are
given is read from disk (`formats`). All of it is NumPy, and ends in a `FederatedDataset`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pfljax.data import checks
from pfljax.data.dataset import TASKS, FederatedDataset, Split
from pfljax.data.examples import Examples
from pfljax.data.formats import load_npz, load_pfllib, save_npz
from pfljax.data.natural import natural
from pfljax.data.partition import dirichlet, iid, pathological
from pfljax.data.sources import SOURCES, load_digits, load_fashion_mnist, load_mnist
from pfljax.data.split import assemble
from pfljax.errors import UserError

__all__ = [
    "DATASETS",
    "PARTITIONS",
    "SOURCES",
    "TASKS",
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
    "natural",
    "pathological",
    "save_npz",
]

# Data sets whose clients are given; all others are pools, which a partition deals out.
_GIVEN: dict[str, Callable[..., FederatedDataset]] = {
    "pfllib": load_pfllib,
    "npz": load_npz,
}
DATASETS = {**SOURCES, **_GIVEN}
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
    options: Mapping[str, Any] | None = None,
) -> FederatedDataset:
    """Returns a federated data set by name.

    Args:
      name: a key of `DATASETS`.
      dir: a directory that holds its files, or a folder of its own name that does; for `npz` a
        file. Not used for what is generated or comes with a package.
      partition: `iid`, `pathological`, `dirichlet`, or `natural` where the examples have owners;
        `pfllib` and `npz` keep their own clients whatever it says.
      alpha: concentration of the `dirichlet` partition.
      classes_per_client: for the `pathological` partition.
      num_clients: how many clients to deal the examples out to; `natural` takes all owners.
      seed: decides the partition and the splits.
      test_fraction: of each client's examples; `pfllib` and `npz` have their own test examples.
      validation_fraction: of each client's other examples; `npz` has its own.
      unseen_fraction: of the clients, who never train; `npz` has its own.
      least: examples that the `dirichlet` partition must give every client, and without which
        `natural` leaves an owner out; None for their rules.
      options: of this data set alone, the keyword-only arguments of its loader in `SOURCES`.

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
    options = options or {}
    for option in options:
        checks.choice(f"data.options.{name}", option, _options(name))
    if name == "npz":
        return load_npz(dir)
    if name == "pfllib":
        return load_pfllib(
            dir,
            validation_fraction=validation_fraction,
            unseen_fraction=unseen_fraction,
            seed=seed,
        )
    examples = SOURCES[name](dir, **options)
    if partition == "natural" and examples.owners is None:
        raise UserError(
            f"{name} has no natural clients: choose the partition iid, pathological or dirichlet."
        )
    labels = examples.labels
    if partition == "natural":
        clients = natural(examples.owners, least)
    elif partition == "iid":
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


def _options(name: str) -> list[str]:
    """Returns the names of a data set's own options."""
    parameters = inspect.signature(SOURCES[name]).parameters.values() if name in SOURCES else ()
    return [each.name for each in parameters if each.kind is each.KEYWORD_ONLY]


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
    kinds = {
        "classification": f"in {dataset.num_classes} classes",
        "regression": f"with targets {dataset.target_mean:.3g} +- {dataset.target_std:.3g}",
        "next_token": f"of {dataset.num_classes} tokens",
    }
    classes = ""
    if dataset.task == "classification":
        spread = _spread((dataset.class_counts() > 0).sum(axis=1))
        classes = f", training classes per client {spread}"
    return (
        f"{dataset.name}: {dataset.num_clients} clients ({dataset.num_unseen} unseen), "
        f"{len(dataset.targets)} examples of shape {shape} ({dataset.inputs.dtype}) "
        f"{kinds[dataset.task]}\n"
        f"training {training}, validation {validation}, test {test} examples\n"
        f"examples per client {examples}{classes} (min/median/max)"
    )


def _spread(values: np.ndarray) -> str:
    return f"{values.min():g} / {np.median(values):g} / {values.max():g}"
