"""Federated data sets from the user's arrays: inputs, targets, and the client of each example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pfljax.data import checks, validate, validate_arrays
from pfljax.data.dataset import FederatedDataset
from pfljax.data.examples import Examples
from pfljax.data.input_arrays import by_name, map_inputs, of_name
from pfljax.data.sources.scale import mean_and_std
from pfljax.data.split import SPLITS, assemble
from pfljax.data.standardize import STANDARDIZATIONS
from pfljax.data.standardize import standardize as standardized
from pfljax.errors import UserError

_FRACTIONS = "pass task='regression' if these are not classes"


def from_arrays(
    inputs: np.ndarray | Mapping[str, np.ndarray],
    targets: np.ndarray | Sequence,
    clients: np.ndarray | Sequence,
    *,
    name: str = "own",
    task: str = "classification",
    vocabulary: Sequence[int] | Mapping[str, int | Sequence[int]] = (),
    class_names: Sequence[str] = (),
    in_time: bool = False,
    normalize: bool = True,
    test_fraction: float = 0.25,
    validation_fraction: float = 0.1,
    unseen_fraction: float = 0.0,
    split: str = "stratified",
    standardize: str = "given",
    seed: int = 0,
) -> FederatedDataset:
    """Returns a federated data set made of arrays, with each client's examples split.

    Args:
      inputs: `[n, ...]` numbers: features, images `[n, height, width, channels]`, or ids; or a dict
        of such arrays by name, if an example consists of several.
      targets: `[n]` labels of any kind: integers from 0 to C - 1, which are kept, or others, such
        as strings or -1 and 1, which are numbered in sorted order; for the task regression,
        numbers; for next_token, `[n, T]` ids.
      clients: `[n]` integers or strings, the client of each example. Clients are numbered in
        sorted order.
      name: The name of the data set in reports.
      task: The kind of targets, one of `TASKS`.
      vocabulary: The sizes of the id spaces if inputs are ids; see `FederatedDataset`. For a dict
        of inputs, a dict by the names of those that are ids.
      class_names: The names of the labels 0, 1, ..., some of which may have no example; empty for
        labels that name themselves.
      in_time: Whether each client's examples are in order of time, so that its last examples are
        the test examples, instead of random ones.
      normalize: Whether numeric inputs, and targets of a regression, are standardized to mean 0
        and standard deviation 1, for each feature or channel over all examples.
      test_fraction: The fraction of a client's examples that are test examples, in (0, 1).
      validation_fraction: The fraction of the other examples that are used to select models, in
        [0, 1).
      unseen_fraction: The fraction of held-out clients, in [0, 1).
      split: How a client's examples are split, one of `split.SPLITS`.
      standardize: One of `STANDARDIZATIONS`, for inputs in place of `normalize`: 'pooled' by all
        training examples, 'client' for each client by its own.
      seed: The seed of the splits.

    Returns:
      The federated data set, with the names of labels and clients in `class_names` and
      `client_names`; `save_npz` writes it to a file for use in configs.

    Raises:
      UserError: The arrays do not match, a client has a single example, or a value is invalid.

    Example:
      >>> inputs = np.arange(12.0).reshape(6, 2)
      >>> labels, clients = ["cat", "dog"] * 3, ["ann"] * 3 + ["bob"] * 3
      >>> made = from_arrays(inputs, labels, clients, test_fraction=0.3, validation_fraction=0.0)
      >>> made.class_names, made.client_names, made.test.sizes.tolist()
      (('cat', 'dog'), ('ann', 'bob'), [1, 1])
    """
    checks.choice("split", split, SPLITS)
    checks.choice("standardize", standardize, STANDARDIZATIONS)
    pool = pool_from_arrays(
        inputs,
        targets,
        clients,
        name=name,
        task=task,
        vocabulary=vocabulary,
        class_names=class_names,
        in_time=in_time,
        normalize=normalize,
    )
    client_names, owners = _numbered(f"The data set {name}", "client", np.asarray(clients))
    rows = [np.flatnonzero(owners == client) for client in range(int(owners.max()) + 1)]
    single = next((client for client, each in enumerate(rows) if len(each) == 1), None)
    if single is not None:
        called = client_names[single] if client_names else single
        raise UserError(
            f"The data set {name} has a single example of the client {called}, but a client needs "
            "one to train and one to test on: remove that client."
        )
    dataset = assemble(
        pool,
        rows,
        test_fraction=test_fraction,
        validation_fraction=validation_fraction,
        unseen_fraction=unseen_fraction,
        seed=seed,
        client_names=client_names,
        split=split,
    )
    return standardized(dataset, standardize)


def pool_from_arrays(
    inputs: np.ndarray | Mapping[str, np.ndarray],
    targets: np.ndarray | Sequence,
    clients: np.ndarray | Sequence | None = None,
    *,
    name: str = "own",
    task: str = "classification",
    vocabulary: Sequence[int] | Mapping[str, int | Sequence[int]] = (),
    class_names: Sequence[str] = (),
    in_time: bool = False,
    normalize: bool = True,
) -> Examples:
    """Returns a pool of examples, which a config partitions among clients: what a loader returns.

    Args:
      inputs: As for `from_arrays`.
      targets: As for `from_arrays`.
      clients: `[n]` integers or strings, the client of each example in the partition `natural`;
        None if the examples have no clients of their own.
      name: The name of the data set in reports.
      task: The kind of targets, one of `TASKS`.
      vocabulary: As for `from_arrays`.
      class_names: As for `from_arrays`.
      in_time: As for `from_arrays`.
      normalize: As for `from_arrays`.

    Returns:
      The pool, validated.

    Raises:
      UserError: The arrays do not match, or a value is invalid.

    Example:
      >>> pool_from_arrays(np.zeros((3, 2)), ["no", "yes", "no"]).class_names
      ('no', 'yes')
    """
    where = f"The data set {name}"
    inputs, targets = map_inputs(np.asarray, inputs), np.asarray(targets)
    given = {f"inputs {key}".strip(): array for key, array in by_name(inputs).items()}
    first = next(iter(given.values()), np.empty(0))
    others = (
        {"targets": targets}
        if clients is None
        else {"targets": targets, "clients": np.asarray(clients)}
    )
    for what, array in {**given, **others}.items():
        if array.shape[:1] != first.shape[:1] or not array.size:
            raise UserError(
                f"{where} has inputs of shape {first.shape} and {what} of shape {array.shape}: "
                "pass one target and one client for each example."
            )
    if isinstance(vocabulary, Mapping):
        vocabulary = {name: _sizes(size) for name, size in vocabulary.items()}
    else:
        vocabulary = _sizes(vocabulary)
        if not isinstance(inputs, Mapping) and inputs.ndim == 1:
            inputs = inputs[:, np.newaxis]
    owners = None if clients is None else _numbered(where, "client", others["clients"])[1]
    num_classes = 0
    if task == "classification":
        class_names, targets = _classes(where, targets, tuple(class_names))
        num_classes = len(class_names) or int(targets.max()) + 1
    elif class_names:
        raise UserError(f"{where} has names of classes, but the task {task} has no classes.")
    elif task == "next_token":
        num_classes = next((sizes[0] for sizes in by_name(vocabulary).values() if sizes), 0)
    pool = Examples(
        name=name,
        inputs=inputs,
        targets=targets,
        num_classes=num_classes,
        task=task,
        owners=owners,
        time_gap=0 if in_time else None,
        vocabulary=vocabulary,
        class_names=tuple(class_names),
    )
    pool = validate.examples(pool, where)
    if normalize:
        pool = _normalized(pool)
    if normalize and task == "regression":
        (mean,), (std,) = mean_and_std(pool.targets[:, np.newaxis])
        pool = pool._replace(target_mean=float(mean), target_std=float(std))
    return pool


def _sizes(vocabulary: int | Sequence[int]) -> tuple[int, ...]:
    """Returns the sizes of the id spaces of one array."""
    return tuple(int(size) for size in np.atleast_1d(np.asarray(vocabulary, int)))


def _normalized(pool: Examples) -> Examples:
    """Returns a pool with the mean and the standard deviation of its measured inputs."""
    found = {
        name: mean_and_std(array[:, np.newaxis] if array.ndim == 1 else array)
        for name, array in by_name(pool.inputs).items()
        if not of_name(pool.vocabulary, name, ())
    }
    if not found:
        return pool
    if not isinstance(pool.inputs, Mapping):
        mean, std = found[""]
        return pool._replace(mean=mean, std=std)
    # A scalar for each example has a scalar mean.
    fitting = {
        name: [value[0] if pool.inputs[name].ndim == 1 else value for value in statistics]
        for name, statistics in found.items()
    }
    return pool._replace(
        mean={name: mean for name, (mean, _) in fitting.items()},
        std={name: std for name, (_, std) in fitting.items()},
    )


def _classes(
    where: str, targets: np.ndarray, class_names: tuple[str, ...]
) -> tuple[tuple[str, ...], np.ndarray]:
    """Returns the names of classes, none if labels are numbers already, and the numeric labels."""
    if class_names:
        targets = validate_arrays.whole(where, targets, "label", remedy="pass no class_names")
        if targets.min() < 0 or targets.max() >= len(class_names):
            raise UserError(
                f"{where} has labels from {targets.min()} to {targets.max()} and "
                f"{len(class_names)} names of classes: pass a name for each."
            )
        return class_names, targets
    if targets.dtype.kind in "iuf" and targets.ndim == 1:
        targets = validate_arrays.whole(where, targets, "label", remedy=_FRACTIONS)
        if targets.min() >= 0 and targets.max() < len(targets):
            return (), targets
    return _numbered(where, "label", targets)


def _numbered(where: str, what: str, values: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    """Numbers values in sorted order; returns their names, none if nothing changed, and numbers."""
    if values.dtype.kind == "O":  # strings of other libraries' tables
        kinds = {str if isinstance(value, str) else type(value) for value in values.flat}
        values = values.astype(kinds.pop()) if kinds in ({str}, {int}, {bool}) else values
    if values.ndim != 1 or values.dtype.kind not in "biufU":
        raise UserError(
            f"{where} has {what}s of shape {values.shape} and dtype {values.dtype} instead of a "
            f"string or a whole number for each example: pass a {what} for each."
        )
    if values.dtype.kind == "f":
        values = validate_arrays.whole(where, values, what)
    names, numbers = np.unique(values, return_inverse=True)
    if names.dtype.kind in "iu" and np.array_equal(names, np.arange(len(names))):
        return (), numbers.astype(np.int32)
    return tuple(map(str, names.tolist())), numbers.astype(np.int32)
