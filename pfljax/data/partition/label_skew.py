"""Partitions in which each client has some of the classes only."""

from __future__ import annotations

import numpy as np

from pfljax.data import checks
from pfljax.data.partition.pool import apportion, gather, members_by_class
from pfljax.errors import UserError

_SMALLEST_WEIGHT = 0.1  # weight of a client in the split of a class; the largest is 1


def pathological(
    labels: np.ndarray,
    num_clients: int,
    classes_per_client: int,
    seed: int,
    balanced: bool = True,
) -> list[np.ndarray]:
    """Assigns exactly `classes_per_client` classes to every client.

    Every class is assigned to the same number of clients, to within one, and split among them.

    Args:
      labels: `[n]` integers, the label of each example.
      num_clients: Number of clients.
      classes_per_client: Number of classes of a client, at most the number of classes.
      seed: A whole number; the same seed gives the same partition.
      balanced: Whether a class is split equally among its clients; if not, it is split in
        proportion to weights drawn uniformly between 0.1 and 1, with at least one example each.

    Returns:
      `num_clients` arrays of row indices, int64.

    Raises:
      UserError: An argument is invalid, some class would be assigned to no client, or a class has
        fewer examples than clients.

    >>> labels = np.repeat(np.arange(4), 5)
    >>> clients = pathological(labels, num_clients=4, classes_per_client=2, seed=0)
    >>> [len(np.unique(labels[rows])) for rows in clients]
    [2, 2, 2, 2]
    """
    classes, members = members_by_class(labels, num_clients, seed)
    rng = np.random.default_rng(seed)
    holders = assign_classes(classes, members, num_clients, classes_per_client, rng)
    pieces: list[list[np.ndarray]] = [[] for _ in range(num_clients)]
    for rows, clients in zip(members, holders, strict=True):
        shuffled = rng.permutation(rows)
        if balanced:
            parts = np.array_split(shuffled, len(clients))
        else:
            weights = rng.uniform(_SMALLEST_WEIGHT, 1, len(clients))
            sizes = apportion(len(rows), weights, min_size=1)
            parts = np.split(shuffled, np.cumsum(sizes)[:-1])
        for client, part in zip(rng.permutation(clients), parts, strict=True):
            pieces[client].append(part)
    return [np.sort(np.concatenate(rows)) for rows in pieces]


def assign_classes(
    classes: np.ndarray,
    members: list[np.ndarray],
    num_clients: int,
    classes_per_client: int,
    rng: np.random.Generator,
) -> list[list[int]]:
    """Draws the clients of each class, the same number for every class, to within one.

    Args:
      classes: `[C]` the labels.
      members: The rows of each class.
      num_clients: Number of clients.
      classes_per_client: Number of different classes of each client.
      rng: The random number generator.

    Returns:
      The clients of each class.

    Raises:
      UserError: Some class would be assigned to no client, or has fewer examples than clients.
    """
    num_classes, sizes = len(classes), np.array([len(rows) for rows in members])
    if checks.whole("classes_per_client", classes_per_client, 1) > num_classes:
        raise UserError(
            f"classes_per_client is {classes_per_client} but the data have {num_classes} classes: "
            f"use at most {num_classes}."
        )
    slots = num_clients * classes_per_client
    if slots < num_classes:
        raise UserError(
            f"{num_clients} clients of {classes_per_client} classes cannot cover all {num_classes} "
            f"classes: use at least {-(-num_classes // classes_per_client)} clients or "
            f"classes_per_client={-(-num_classes // num_clients)}."
        )
    quota = np.full(num_classes, slots // num_classes)
    quota[np.argsort(-sizes, kind="stable")[: slots % num_classes]] += 1
    if np.any(sizes < quota):
        scarce = np.argmax(quota - sizes)
        most = max(1, sizes.min() * num_classes // classes_per_client)
        raise UserError(
            f"Class {classes[scarce]} has {sizes[scarce]} examples for {quota[scarce]} clients: "
            f"use at most {most} clients or fewer classes_per_client."
        )
    holders: list[list[int]] = [[] for _ in classes]
    unfilled = quota.copy()
    for client in range(num_clients):
        # Choosing the classes with most unfilled slots first ensures that every client finds
        # `classes_per_client` different classes with an unfilled slot.
        chosen = np.lexsort((rng.random(num_classes), -unfilled))[:classes_per_client]
        unfilled[chosen] -= 1
        for label in chosen:
            holders[label].append(client)
    return holders


def shards(
    labels: np.ndarray, num_clients: int, shards_per_client: int, seed: int
) -> list[np.ndarray]:
    """Sorts the examples by label, splits them into equal shards, and assigns shards to clients.

    As in McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized
    Data", 2017, https://arxiv.org/abs/1602.05629. A shard may contain the end of one class and the
    beginning of the next, and a client may get two shards of one class.

    Args:
      labels: `[n]` integers, the label of each example.
      num_clients: Number of clients.
      shards_per_client: Number of shards of a client.
      seed: A whole number; the same seed gives the same partition.

    Returns:
      `num_clients` arrays of row indices, int64.

    Raises:
      UserError: An argument is invalid, or there are more shards than examples.

    >>> labels = np.repeat(np.arange(10), 6)
    >>> [len(rows) for rows in shards(labels, num_clients=5, shards_per_client=2, seed=0)]
    [12, 12, 12, 12, 12]
    """
    _, members = members_by_class(labels, num_clients, seed)
    total = sum(map(len, members))
    num_shards = num_clients * checks.whole("shards_per_client", shards_per_client, 1)
    if num_shards > total:
        raise UserError(
            f"{total} examples cannot be split into {num_shards} shards: use at most "
            f"shards_per_client={total // num_clients} or fewer clients."
        )
    rng = np.random.default_rng(seed)
    by_label = np.concatenate([rng.permutation(rows) for rows in members])
    pieces = np.array_split(by_label, num_shards)
    assigned = rng.permutation(num_shards).reshape(num_clients, shards_per_client)
    return [np.sort(np.concatenate([pieces[shard] for shard in own])) for own in assigned]


def groups(
    labels: np.ndarray,
    num_clients: int,
    num_groups: int,
    seed: int,
    superclasses: np.ndarray | None = None,
) -> list[np.ndarray]:
    """Splits the classes among groups of clients, and the examples of a group uniformly.

    Client k belongs to group k mod `num_groups`, counted before held-out clients are moved to the
    end. All clients of a group have the same label distribution, and two groups have no class in
    common.

    Args:
      labels: `[n]` integers, the label of each example.
      num_clients: Number of clients.
      num_groups: Number of groups, at most the number of clients and of classes.
      seed: A whole number, the seed of the assignment of classes to groups; the same seed gives
        the same partition.
      superclasses: `[C]` integers, the superclass of each label; classes of a superclass are then
        assigned to the same group. None if there are no superclasses.

    Returns:
      `num_clients` arrays of row indices, int64.

    Raises:
      UserError: An argument is invalid, or a group has more clients than examples.

    >>> labels = np.repeat(np.arange(4), 6)
    >>> clients = groups(labels, num_clients=4, num_groups=2, seed=0)
    >>> [np.unique(labels[rows]).tolist() for rows in clients]
    [[0, 1], [2, 3], [0, 1], [2, 3]]
    """
    classes, members = members_by_class(labels, num_clients, seed)
    kinds = classes if superclasses is None else np.asarray(superclasses)[classes]
    _, kinds = np.unique(kinds, return_inverse=True)
    what = "classes" if superclasses is None else "superclasses"
    most = min(kinds.max() + 1, num_clients)
    if checks.whole("num_groups", num_groups, 1) > most:
        raise UserError(
            f"num_groups is {num_groups}, but {kinds.max() + 1} {what} and {num_clients} clients "
            f"allow at most {most} groups."
        )
    rng = np.random.default_rng(seed)
    group_of_kind = rng.permutation(kinds.max() + 1) % num_groups
    group_of_class = group_of_kind[kinds]
    counts = np.zeros((len(classes), num_clients), np.int64)
    for group in range(num_groups):
        clients = np.arange(group, num_clients, num_groups)
        own = np.flatnonzero(group_of_class == group)
        # The labels of the group in random order, split into equal pieces.
        shuffled = rng.permutation(np.repeat(own, [len(members[label]) for label in own]))
        if len(shuffled) < len(clients):
            raise UserError(
                f"A group of {len(clients)} clients has {len(shuffled)} examples: use fewer "
                "num_clients or fewer num_groups."
            )
        for client, piece in zip(clients, np.array_split(shuffled, len(clients)), strict=True):
            counts[:, client] = np.bincount(piece, minlength=len(classes))
    return gather(members, counts, rng)
