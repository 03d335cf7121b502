"""Federated data sets on the host: sources, partitions, splits and formats, in NumPy.

Programs call `load`. It reads a pool of examples (`sources`), partitions it among clients
(`partition`) and splits the examples of each client (`split`); or it reads a data set with given
clients from disk (`formats`). `from_arrays` (`arrays`) builds one from arrays. All of them are
validated by the same code (`validate`) and result in a `FederatedDataset`. Shifts for groups of
clients (`shift`) are applied last.
"""

from __future__ import annotations

import collections
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pfljax.data import checks, in_memory, input_arrays, reading, server, validate
from pfljax.data.arrays import from_arrays, pool_from_arrays
from pfljax.data.dataset import TASKS, FederatedDataset, ServerExamples, Split
from pfljax.data.difference import USER_FEATURES, difference_features
from pfljax.data.examples import Examples
from pfljax.data.formats import StoreWriter, load_npz, load_pfllib, load_store, save_npz
from pfljax.data.natural import natural
from pfljax.data.partition import PARTITIONS as _DEALT
from pfljax.data.partition import dirichlet, iid, make_partition, pathological
from pfljax.data.precompute import precompute
from pfljax.data.shift import CONCEPT_SHIFTS, FEATURE_SHIFTS, shift_concept, shift_features
from pfljax.data.sources import SOURCES, load_digits, load_fashion_mnist, load_mnist
from pfljax.data.split import SPLITS, assemble
from pfljax.data.standardize import STANDARDIZATIONS
from pfljax.data.standardize import standardize as standardized
from pfljax.data.tables import from_csv, from_frame, from_hugging_face, from_parquet
from pfljax.errors import UserError

__all__ = [
    "CONCEPT_SHIFTS",
    "DATASETS",
    "FEATURE_SHIFTS",
    "GIVEN",
    "GROUPINGS",
    "PARTITIONS",
    "SOURCES",
    "TASKS",
    "USER_FEATURES",
    "Examples",
    "FederatedDataset",
    "ServerExamples",
    "Split",
    "StoreWriter",
    "assemble",
    "make_partition",
    "describe",
    "difference_features",
    "dirichlet",
    "from_arrays",
    "from_csv",
    "from_frame",
    "from_hugging_face",
    "from_parquet",
    "iid",
    "load",
    "load_digits",
    "load_fashion_mnist",
    "load_mnist",
    "load_npz",
    "load_pfllib",
    "load_store",
    "natural",
    "pathological",
    "pool_from_arrays",
    "precompute",
    "save_npz",
    "shift_concept",
    "shift_features",
]

# Data sets with given clients; all others are pools, which are partitioned.
GIVEN: dict[str, Callable[..., FederatedDataset]] = {
    "pfllib": load_pfllib,
    "npz": load_npz,
    "store": load_store,
    in_memory.NAME: in_memory.find,
}
# A view of both, which includes those that are registered later.
DATASETS = collections.ChainMap(GIVEN, SOURCES)
PARTITIONS = (*_DEALT, "natural")
GROUPINGS = ("class", "superclass")


def load(
    name: str,
    *,
    dir: str = "",
    partition: str = "dirichlet",
    alpha: float = 0.1,
    classes_per_client: int = 2,
    balanced: bool = True,
    shards_per_client: int = 2,
    size_sigma: float = 1.0,
    size_exponent: float = 1.0,
    num_groups: int = 4,
    group_by: str = "class",
    feature_shift: str = "none",
    shift_strength: float = 0.5,
    concept_shift: str = "none",
    num_clients: int = 20,
    seed: int = 0,
    test_fraction: float = 0.25,
    validation_fraction: float = 0.1,
    unseen_fraction: float = 0.0,
    split: str = "stratified",
    standardize: str = "given",
    user_features: str = "none",
    shrinkage: float = 5.0,
    server_fraction: float = 0.0,
    server_name: str = "",
    server_dir: str = "",
    checksum: str = "",
    min_size: int | None = None,
    num_owners: int = 0,
    options: Mapping[str, Any] | None = None,
) -> FederatedDataset:
    """Returns a federated data set by name.

    Args:
      name: A key of `DATASETS`.
      dir: The directory of the files, or the parent of a directory with the data set's name; for
        `npz` a file. Not used for generated data sets and for those that come with a package.
      partition: A key of `PARTITIONS`; `natural` if the examples have owners. `pfllib`, `npz` and
        `store` keep their own clients, whatever the partition.
      alpha: The concentration of the four Dirichlet partitions.
      classes_per_client: Number of classes of a client, for `pathological` and
        `dirichlet_extended`.
      balanced: Whether `pathological` splits a class equally among its clients.
      shards_per_client: Number of shards of a client, for `shards`.
      size_sigma: The standard deviation of the logarithms of sizes, for `quantity_log_normal`.
      size_exponent: The exponent of the sizes over their ranks, for `quantity_power_law`.
      num_groups: Number of groups of clients, for the partition `groups` and for both shifts.
      group_by: One of `GROUPINGS`: whether `groups` assigns single classes or whole superclasses.
      feature_shift: One of `FEATURE_SHIFTS`, the change of the groups' inputs; copies the inputs.
      shift_strength: The strength of the shifts `contrast` and `noise`, from 0 to 1.
      concept_shift: One of `CONCEPT_SHIFTS`, the change of the groups' labels; copies the targets.
      num_clients: Number of clients of the partition; `natural` has `num_owners`.
      seed: The seed of the partition and the splits.
      test_fraction: The fraction of each client's examples that are test examples; `pfllib`, `npz`
        and `store` have their own.
      validation_fraction: The fraction of each client's other examples that are validation
        examples; `npz` and `store` have their own.
      unseen_fraction: The fraction of held-out clients; `npz` and `store` have their own.
      split: One of `SPLITS`, how examples are split: 'stratified' keeps the fractions of a client's
        labels, 'plain' is the split of scikit-learn by `seed`, 'by_item' tests items of which no
        client has a training example, 'temporal' tests each client's last examples, and 'last_two'
        its last one, with the one before it for validation, whatever the fractions.
      standardize: One of `STANDARDIZATIONS`: by the mean and the deviation of inputs that are
        'given' with the data set, by those of all training examples ('pooled'), or for each
        client by its own ('client').
      user_features: One of `USER_FEATURES`, features of a user that are added to the inputs of its
        examples: 'difference' is `difference_features`.
      shrinkage: Number of ratings without a deviation that `difference_features` adds to those of
        each user.
      server_fraction: The fraction of the examples that the server holds and no client: of the data
        set, before it is partitioned, or of `server_name`.
      server_name: A key of `SOURCES`, the data set of the server's examples; empty for that of the
        clients.
      server_dir: The directory of its files, like `dir`.
      checksum: For the name `python`, the checksum of a data set that Python code has passed.
      min_size: The minimum number of examples of a client in the Dirichlet partitions (except the
        balanced one) and the quantity partitions; `natural` drops owners with fewer. None selects
        the defaults of the partitions.
      num_owners: The number of owners that `natural` draws by `seed`; 0 uses all of them.
      options: Options of this data set, the keyword-only arguments of its loader in `SOURCES`.

    Returns:
      The federated data set.

    Raises:
      UserError: An argument is invalid, or files are missing or damaged.

    >>> data = load(name="digits", partition="iid", num_clients=10)
    >>> data.num_clients, len(data.targets)
    (10, 1797)
    """
    checks.choice("data.name", name, DATASETS)
    checks.choice("data.partition", partition, PARTITIONS)
    options = options or {}
    for option in options:
        checks.choice(f"data.options.{name}", option, _options(name))
    checks.choice("data.group_by", group_by, GROUPINGS)
    checks.choice("data.split", split, SPLITS)
    checks.choice("data.standardize", standardize, STANDARDIZATIONS)
    checks.choice("data.user_features", user_features, USER_FEATURES)
    checks.choice("data.feature_shift", feature_shift, FEATURE_SHIFTS)
    checks.choice("data.concept_shift", concept_shift, CONCEPT_SHIFTS)
    _require_server(name, server_fraction, server_name)
    if user_features != "none":
        _require_same_items(
            user_features,
            standardize=standardize,
            feature_shift=feature_shift,
            concept_shift=concept_shift,
        )
        checks.number("data.shrinkage", shrinkage, 0, 1e9)
    held = None
    if server_name:
        public = _read(server_name, server_dir)
        public = validate.examples(public, _where(server_name, server_dir))
        held = server.of_source(public, server_fraction, seed)
        if public.items is not None:
            held = held._replace(inputs=public.items[held.inputs])
    if name == in_memory.NAME:
        dataset = in_memory.find(checksum)
        held = held or dataset.server
    elif name in ("npz", "store"):
        dataset = _read(name, dir)
    elif name == "pfllib":
        dataset = _read(
            name,
            dir,
            validation_fraction=validation_fraction,
            unseen_fraction=unseen_fraction,
            seed=seed,
        )
    else:
        examples = validate.examples(_read(name, dir, **options), _where(name, dir))
        if server_fraction and not server_name:
            examples, held = server.hold_out(examples, server_fraction, seed)
        names, groups = (), None
        if partition == "natural":
            owners = _owners(examples)
            clients = natural(owners, min_size, num_owners, seed)
            if examples.owner_names:
                numbers = np.array([owners[rows[0]] for rows in clients])
                names = [examples.owner_names[number] for number in numbers]
                of_owners = examples.owner_groups or {}
                groups = {name: of[numbers] for name, of in of_owners.items()} or None
        else:
            clients = make_partition(
                partition,
                examples.labels,
                num_clients,
                seed,
                alpha=alpha,
                classes_per_client=classes_per_client,
                balanced=balanced,
                shards_per_client=shards_per_client,
                size_sigma=size_sigma,
                size_exponent=size_exponent,
                num_groups=num_groups,
                superclasses=_superclasses(examples, partition, group_by),
                min_size=min_size,
            )
        dataset = assemble(
            examples,
            clients,
            test_fraction=test_fraction,
            validation_fraction=validation_fraction,
            unseen_fraction=unseen_fraction,
            seed=seed,
            split=split,
            client_names=names,
            groups=groups,
        )
    if user_features == "difference":
        dataset = difference_features(dataset._replace(server=held), shrinkage)
    if server_name or standardize == "client" or feature_shift != "none":
        # Then equal items have different values, or those of another data set are beside them.
        dataset = dataset.gathered()
    if server_name:
        clients = ServerExamples(dataset.inputs, dataset.targets)
        server.require_form(held, clients, (public.num_classes, dataset.num_classes))
    dataset = standardized(dataset, standardize)
    dataset = shift_features(
        dataset, feature_shift, num_groups=num_groups, strength=shift_strength, seed=seed
    )
    dataset = shift_concept(dataset, concept_shift, num_groups=num_groups, seed=seed)
    return dataset._replace(server=held)


def _require_server(name: str, fraction: float, server_name: str) -> None:
    """Raises a `UserError` where the server's examples are not defined."""
    if not server_name:
        checks.fraction("data.server_fraction", fraction)
        if fraction and name in GIVEN:
            raise UserError(
                f"{name} has its own clients, and no examples beside theirs: name the data set of "
                "the server in data.server_name, or set data.server_fraction=0."
            )
        return
    checks.choice("data.server_name", server_name, SOURCES)
    if checks.number("data.server_fraction", fraction, 0, 1) == 0:
        raise UserError(
            f"data.server_name is {server_name}, and data.server_fraction is 0: set it to the "
            "fraction that the server holds, such as 1.0, or leave data.server_name empty."
        )


def _require_same_items(user_features: str, **settings: str) -> None:
    """Raises a `UserError` if a setting changes the items or labels of some users only."""
    for key, value in settings.items():
        if value in ("none", "given", "pooled"):
            continue
        raise UserError(
            f"data.user_features={user_features} compares the labels of users on the same items, "
            f"and data.{key}={value} changes them for some users only: use one or the other."
        )


def _read(name: str, dir: str, **options: Any) -> Any:
    """Calls the loader of a data set; files that cannot be opened raise a `UserError`."""
    where = _where(name, dir)
    try:
        return DATASETS[name](dir, **options)
    except MemoryError as error:
        raise reading.too_large(where) from error
    except OSError as error:  # such as a long name, or a directory without permission
        reason = error.strerror or error
        raise UserError(f"{where[:200]} cannot be read ({reason}): check data.dir.") from error


def _where(name: str, dir: str) -> str:
    return f"{name} in {dir}" if dir else name


def _owners(examples: Examples) -> np.ndarray:
    if examples.owners is None:
        raise UserError(
            f"{examples.name} has no natural clients: choose another data.partition, such as "
            "dirichlet."
        )
    return examples.owners


def _superclasses(examples: Examples, partition: str, group_by: str) -> np.ndarray | None:
    if partition != "groups" or group_by == "class":
        return None
    if examples.superclasses is None:
        raise UserError(f"{examples.name} has no superclasses: use data.group_by=class.")
    return examples.superclasses


def _options(name: str) -> list[str]:
    """Returns the names of a data set's options."""
    parameters = inspect.signature(SOURCES[name]).parameters.values() if name in SOURCES else ()
    return [each.name for each in parameters if each.kind is each.KEYWORD_ONLY]


def describe(dataset: FederatedDataset) -> str:
    """Returns a description of a data set for logs.

    Args:
      dataset: The data set.

    Returns:
      Its clients, examples and classes per client, without a final newline.

    >>> print(describe(load(name="digits", partition="iid", num_clients=10)))
    digits: 10 clients (0 unseen), 1797 examples of shape 8x8x1 (uint8) in 10 classes
    training 1210, validation 137, test 450 examples
    examples per client 179 / 180 / 180, training classes per client 10 / 10 / 10 (min/median/max)
    """
    splits = (dataset.train, dataset.validation, dataset.test)
    training, validation, test = (int(split.sizes.sum()) for split in splits)
    examples = _spread(sum(split.sizes for split in splits))
    forms = input_arrays.by_name(dataset.input_forms)
    first = next(iter(forms.values()))
    of_items = "" if dataset.items is None else f", of {len(dataset.items)} items"
    kinds = {
        "classification": f"in {dataset.num_classes} classes",
        "regression": f"with targets {dataset.target_mean:.3g} +- {dataset.target_std:.3g}",
        "next_token": f"of {dataset.num_classes} tokens",
        "ranking": f"of {first.shape[:1]} items",
        "recommendation": f"of {first.shape[:1]} items with {dataset.num_classes} tags",
        "preference": "of 2 answers",
    }
    classes = ""
    if dataset.task == "classification":
        rows = zip(*dataset.train, strict=True)
        held = [len(np.unique(dataset.targets[start : start + size])) for start, size in rows]
        spread = _spread(np.array(held))
        classes = f", training classes per client {spread}"
    return (
        f"{dataset.name}: {dataset.num_clients} clients ({dataset.num_unseen} unseen), "
        f"{len(dataset.targets)} examples of shape {input_arrays.describe(dataset.input_forms)} "
        f"{kinds[dataset.task]}{of_items}\n"
        f"training {training}, validation {validation}, test {test} examples\n"
        f"examples per client {examples}{classes} (min/median/max)"
    )


def _spread(values: np.ndarray) -> str:
    return f"{values.min():g} / {np.median(values):g} / {values.max():g}"
