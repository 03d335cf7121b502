"""Splits each client's examples into training, validation and test rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pfljax.data import checks
from pfljax.data.chronology import split_in_time
from pfljax.data.dataset import FederatedDataset, Split
from pfljax.data.examples import Examples
from pfljax.data.input_arrays import map_inputs
from pfljax.errors import UserError

SPLITS = ("stratified", "plain", "by_item", "temporal", "last_two")


class ClientRows(NamedTuple):
    """The row indices of one client's training, validation and test examples in a pool."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def stratified_choice(labels: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Chooses `count` examples so that each label keeps its fraction, to within one example.

    Args:
      labels: `[n]` integers, the label of each example.
      count: Number of examples to choose, from 0 to n.
      rng: The random number generator.

    Returns:
      `[n]` bool, True for the chosen examples.

    >>> labels = np.array([0, 0, 0, 0, 1, 1])
    >>> labels[stratified_choice(labels, 3, np.random.default_rng(0))].tolist()
    [0, 0, 1]
    """
    chosen = np.zeros(len(labels), bool)
    if count == 0:
        return chosen
    _, inverse, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    quota, remainders = np.divmod(sizes * count, len(labels))
    # The remainder of rounding down goes to the labels with the largest fractional parts.
    first = np.lexsort((rng.random(len(sizes)), -remainders))
    quota[first[: count - quota.sum()]] += 1
    for label, size in enumerate(quota):
        rows = np.flatnonzero(inverse == label)
        chosen[rng.choice(rows, size, replace=False)] = True
    return chosen


def plain_split(
    rows: np.ndarray, test_fraction: float, validation_fraction: float, seed: int
) -> ClientRows:
    """Splits the examples of one client at random, whatever their labels, by scikit-learn.

        test = ceil(test_fraction n);  validation = ceil(validation_fraction (n - test))

    Every client is split with the same seed, so that other programs with scikit-learn have the
    same splits.

    Args:
      rows: `[n]` row indices.
      test_fraction: The fraction of test examples, in (0, 1).
      validation_fraction: The fraction of the other examples that are validation examples.
      seed: The seed.

    >>> plain_split(np.arange(8), 0.25, 0.2, seed=0)
    ClientRows(train=array([7, 0, 1, 5]), validation=array([4, 3]), test=array([6, 2]))
    """
    from sklearn.model_selection import train_test_split  # imported here, as it takes half a second

    count = min(math.ceil(test_fraction * len(rows)), len(rows) - 1)
    rest, test = train_test_split(rows, test_size=count, random_state=seed)
    count = min(math.ceil(validation_fraction * len(rest)), len(rest) - 1)
    if not count:
        return ClientRows(rest, rest[:0], test)
    train, validation = train_test_split(rest, test_size=count, random_state=seed)
    return ClientRows(train, validation, test)


def last_two(rows: np.ndarray, client: int, gap: int) -> ClientRows:
    """Tests the last example of a client and validates on the one before it.

    Args:
      rows: `[n]` row indices in order of time.
      client: The number of the client, for the error message.
      gap: Number of examples that are dropped between two parts.

    Raises:
      UserError: There is no training example left.

    >>> last_two(np.arange(5), client=0, gap=0)
    ClientRows(train=array([0, 1, 2]), validation=array([3]), test=array([4]))
    """
    least = 3 + 2 * gap
    if len(rows) < least:
        raise UserError(
            f"Client {client} has {len(rows)} examples, and data.split=last_two needs {least}: use "
            f"data.min_size={least} or more."
        )
    validation = len(rows) - 2 - gap
    return ClientRows(rows[: validation - gap], rows[validation : validation + 1], rows[-1:])


def split_train(
    rows: np.ndarray, labels: np.ndarray, validation_fraction: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Moves a fraction of a client's training rows to its validation rows, leaving at least one.

    Args:
      rows: `[n]` row indices, whose order is kept.
      labels: `[n]` integers, the labels of the rows.
      validation_fraction: The fraction to move, in [0, 1).
      rng: The random number generator.

    Returns:
      The training rows and the validation rows.
    """
    count = min(round(validation_fraction * len(rows)), max(len(rows) - 1, 0))
    held_out = stratified_choice(labels, count, rng)
    return rows[~held_out], rows[held_out]


def assemble(
    examples: Examples,
    client_indices: Sequence[np.ndarray],
    *,
    test_fraction: float,
    validation_fraction: float,
    unseen_fraction: float,
    seed: int,
    client_names: Sequence[str] = (),
    split: str = "stratified",
    groups: dict[str, np.ndarray] | None = None,
) -> FederatedDataset:
    """Splits every client's examples and concatenates them client by client.

    The test examples are random, or the last ones if the pool has a `time_gap`.

    Args:
      examples: The pool of examples.
      client_indices: One array of row indices per client.
      test_fraction: The fraction of a client's examples that are test examples, in (0, 1);
        rounded, but at least one example and never all.
      validation_fraction: The fraction of the other examples that are used to select models, in
        [0, 1).
      unseen_fraction: The fraction of held-out clients, in [0, 1); unless it is 0, at least one
        client and never all. They are chosen by `seed` and moved to the end.
      seed: A whole number; the same seed gives the same data set.
      client_names: The names of the clients; empty if they are numbers.
      split: One of `SPLITS`: 'stratified' keeps the fractions of labels, 'plain' is `plain_split`,
        'by_item' is `split_by_item`, 'temporal' requires a pool with a `time_gap`, and so does
        'last_two', which tests each client's last example and validates on the one before it,
        whatever the fractions.
      groups: `{attribute: [N] str}`, the groups of the clients; None if there are none.

    Returns:
      The federated data set.

    Raises:
      UserError: An argument is invalid, a client has fewer than two examples, or the pool lacks
        what the split needs.

    >>> pool = Examples("toy", np.zeros((8, 1)), np.array([0, 1] * 4, np.int32), 2)
    >>> data = assemble(pool, [np.arange(4), np.arange(4, 8)], test_fraction=0.25,
    ...                 validation_fraction=0.34, unseen_fraction=0.0, seed=0)
    >>> data.train.sizes.tolist(), data.validation.sizes.tolist(), data.test.sizes.tolist()
    ([2, 2], [1, 1], [1, 1])
    """
    checks.fraction("test_fraction", test_fraction, positive=True)
    checks.fraction("validation_fraction", validation_fraction)
    rng = generator(seed)
    _require_fit(examples, split)
    fractions = test_fraction, validation_fraction
    if split == "by_item":
        clients = split_by_item(examples.split_items, client_indices, *fractions, rng)
    else:
        clients = _split_each(examples, client_indices, *fractions, seed, split, rng)
    return lay_out(
        examples,
        clients,
        unseen_fraction=unseen_fraction,
        rng=rng,
        client_names=client_names,
        groups=groups,
    )


def _split_each(
    examples: Examples,
    client_indices: Sequence[np.ndarray],
    test_fraction: float,
    validation_fraction: float,
    seed: int,
    split: str,
    rng: np.random.Generator,
) -> list[ClientRows]:
    """Splits the examples of every client on their own; the arguments are those of `assemble`."""
    all_labels, gap = examples.labels, examples.time_gap or 0
    clients = []
    for client, indices in enumerate(client_indices):
        if len(indices) < 2 + gap:
            between = f", {gap} apart" if gap else ""
            raise UserError(
                f"Client {client} has {len(indices)} examples but needs one to train and one to "
                f"test on{between}: use fewer clients or a larger `min_size`."
            )
        if split == "last_two":
            clients.append(last_two(indices, client, gap))
            continue
        if examples.time_gap is not None:
            classes = examples.targets if examples.task == "classification" else None
            labels = np.zeros(len(indices), int) if classes is None else classes[indices]
            parts = split_in_time(labels, test_fraction, validation_fraction, gap)
            clients.append(ClientRows(*(indices[part] for part in parts)))
            continue
        if split == "plain":
            clients.append(plain_split(indices, test_fraction, validation_fraction, seed))
            continue
        rows = rng.permutation(indices)
        labels = all_labels[rows]
        count = min(max(round(test_fraction * len(rows)), 1), len(rows) - 1)
        held_out = stratified_choice(labels, count, rng)
        remaining = rows[~held_out]
        train, validation = split_train(remaining, labels[~held_out], validation_fraction, rng)
        clients.append(ClientRows(train, validation, rows[held_out]))
    return clients


def _require_fit(examples: Examples, split: str) -> None:
    """Raises a `UserError` if a pool lacks what a split needs."""
    if split in ("temporal", "last_two") and examples.time_gap is None:
        raise UserError(
            f"The examples of {examples.name} are in no order of time: use data.split=stratified."
        )
    if split != "by_item":
        return
    if examples.time_gap is not None:
        raise UserError(
            f"The examples of {examples.name} are in order of time, and the last ones are tested: "
            "use data.split=temporal."
        )
    if examples.split_items is None:
        raise UserError(
            f"{examples.name} has no items that several clients have in common: use "
            "data.split=stratified."
        )


def split_by_item(
    items: np.ndarray,
    client_indices: Sequence[np.ndarray],
    test_fraction: float,
    validation_fraction: float,
    rng: np.random.Generator,
) -> list[ClientRows]:
    """Splits the items for all clients at once: no client trains on an item that another tests.

    Args:
      items: `[n]` integers, the item of each example.
      client_indices: One array of row indices per client.
      test_fraction: The fraction of test items, in (0, 1); rounded, but at least one.
      validation_fraction: The fraction of the other items that are validation items, in [0, 1).
      rng: The random number generator.

    Returns:
      The rows of every client. Clients may have no validation or no test example.

    Raises:
      UserError: A client has no training example.

    >>> rows = split_by_item(np.array([0, 1, 2, 3, 0, 1, 2, 3]), [np.arange(4), np.arange(4, 8)],
    ...                      0.25, 0.0, np.random.default_rng(0))
    >>> [(each.train.tolist(), each.test.tolist()) for each in rows]
    [([0, 1, 3], [2]), ([4, 5, 7], [6])]
    """
    used = rng.permutation(np.unique(np.concatenate([items[rows] for rows in client_indices])))
    num_test = min(max(round(test_fraction * len(used)), 1), len(used) - 1)
    others = len(used) - num_test
    num_validation = min(round(validation_fraction * others), others - 1)
    test, validation = used[:num_test], used[num_test : num_test + num_validation]
    clients = []
    for client, rows in enumerate(client_indices):
        tested, validated = np.isin(items[rows], test), np.isin(items[rows], validation)
        train = rows[~tested & ~validated]
        if not len(train):
            raise UserError(
                f"All {len(rows)} examples of client {client} are of test or validation items, and "
                "none is left to train on: use a larger data.min_size, or another data.seed."
            )
        clients.append(ClientRows(train, rows[validated], rows[tested]))
    return clients


def lay_out(
    examples: Examples,
    clients: Sequence[ClientRows],
    *,
    unseen_fraction: float,
    rng: np.random.Generator,
    client_names: Sequence[str] = (),
    groups: dict[str, np.ndarray] | None = None,
) -> FederatedDataset:
    """Copies the clients' rows into flat arrays, held-out clients last.

    Args:
      examples: The pool to which the rows refer.
      clients: The rows of every client.
      unseen_fraction: The fraction of held-out clients, in [0, 1).
      rng: The random number generator.
      client_names: The names of the clients; empty if they are numbers.
      groups: `{attribute: [N] str}`, the groups of the clients; None if there are none.

    Returns:
      The federated data set.

    Raises:
      UserError: `unseen_fraction` is invalid or leaves no client to train.
    """
    num_unseen = _count_unseen(len(clients), unseen_fraction)
    unseen = np.zeros(len(clients), bool)
    unseen[rng.choice(len(clients), num_unseen, replace=False)] = True
    unseen_last = np.argsort(unseen, kind="stable")
    ordered = [clients[client] for client in unseen_last]
    order = np.concatenate([rows for client in ordered for rows in client])
    sizes = np.array([[len(rows) for rows in client] for client in ordered], np.int32)
    ends = np.cumsum(sizes, dtype=np.int32).reshape(sizes.shape)
    splits = [
        Split(np.ascontiguousarray(offsets), np.ascontiguousarray(lengths))
        for offsets, lengths in zip((ends - sizes).T, sizes.T, strict=True)
    ]
    return FederatedDataset(
        examples.name,
        map_inputs(lambda array: array[order], examples.inputs),
        examples.targets[order],
        *splits,
        num_classes=examples.num_classes,
        mean=examples.mean,
        std=examples.std,
        num_unseen=num_unseen,
        task=examples.task,
        vocabulary=examples.vocabulary,
        target_mean=examples.target_mean,
        target_std=examples.target_std,
        class_names=examples.class_names,
        client_names=tuple(client_names[client] for client in unseen_last if client_names),
        items=examples.items,
        groups=groups and {name: names[unseen_last] for name, names in groups.items()},
    )


def generator(seed: int) -> np.random.Generator:
    """Returns the random number generator of the splits, independent of the partition's.

    Args:
      seed: A whole number.

    Raises:
      UserError: The seed is not a whole number of at least 0.
    """
    checks.whole("seed", seed, 0)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1,)))


def _count_unseen(num_clients: int, unseen_fraction: float) -> int:
    if checks.fraction("unseen_fraction", unseen_fraction) == 0:
        return 0
    if num_clients < 2:
        raise UserError(
            "unseen_fraction holds out clients, but there is only one: use 0 or more clients."
        )
    return min(max(round(unseen_fraction * num_clients), 1), num_clients - 1)
