"""How a pool of examples is dealt out to clients: pure functions of the labels and a seed.

Each returns one array of row numbers per client, in ascending order; every example goes to
exactly one client.
"""

from __future__ import annotations

import numpy as np

from pfljax.data import checks
from pfljax.errors import UserError

_MOST_ATTEMPTS = 1000
_ATTEMPTS_FOR_ADVICE = 30
_LARGEST_ALPHA = 1e9  # gamma draws overflow far above; long before, the shares are equal


def iid(labels: np.ndarray, num_clients: int, seed: int) -> list[np.ndarray]:
    """Deals the examples out at random, as evenly as their number allows.

    Args:
      labels: `[n]` integers; only their number matters.
      num_clients: how many clients.
      seed: whole number; the same seed gives the same partition.

    Returns:
      `num_clients` arrays of row numbers, int64.

    Raises:
      UserError: an argument makes no sense, or there are more clients than examples.

    >>> [len(rows) for rows in iid(np.zeros(10, int), num_clients=3, seed=0)]
    [4, 3, 3]
    """
    _, members = _check(labels, num_clients, seed)
    shuffled = np.random.default_rng(seed).permutation(sum(map(len, members)))
    return [np.sort(rows) for rows in np.array_split(shuffled, num_clients)]


def pathological(
    labels: np.ndarray, num_clients: int, classes_per_client: int, seed: int
) -> list[np.ndarray]:
    """Gives every client examples of exactly `classes_per_client` classes, in balanced numbers.

    Every class is held by equally many clients (to one), and split equally among them.

    Args:
      labels: `[n]` integers.
      num_clients: how many clients.
      classes_per_client: from 1 to the number of classes.
      seed: whole number; the same seed gives the same partition.

    Returns:
      `num_clients` arrays of row numbers, int64.

    Raises:
      UserError: an argument makes no sense, some class would go to nobody, or a class has fewer
        examples than the clients that should hold it.

    >>> labels = np.repeat(np.arange(4), 5)
    >>> clients = pathological(labels, num_clients=4, classes_per_client=2, seed=0)
    >>> [len(np.unique(labels[rows])) for rows in clients]
    [2, 2, 2, 2]
    """
    classes, members = _check(labels, num_clients, seed)
    num_classes, sizes = len(classes), np.array([len(rows) for rows in members])
    if checks.whole("classes_per_client", classes_per_client, 1) > num_classes:
        raise UserError(
            f"classes_per_client is {classes_per_client} but the data have {num_classes} classes: "
            f"use at most {num_classes}."
        )
    places = num_clients * classes_per_client
    if places < num_classes:
        raise UserError(
            f"{num_clients} clients of {classes_per_client} classes cannot hold all {num_classes} "
            f"classes: use at least {-(-num_classes // classes_per_client)} clients or "
            f"classes_per_client={-(-num_classes // num_clients)}."
        )
    quota = np.full(num_classes, places // num_classes)
    quota[np.argsort(-sizes, kind="stable")[: places % num_classes]] += 1
    if np.any(sizes < quota):
        scarce = np.argmax(quota - sizes)
        most = max(1, sizes.min() * num_classes // classes_per_client)
        raise UserError(
            f"Class {classes[scarce]} has {sizes[scarce]} examples for {quota[scarce]} clients "
            f"that should hold it: use at most {most} clients or fewer classes_per_client."
        )
    rng = np.random.default_rng(seed)
    holders: list[list[int]] = [[] for _ in classes]
    unfilled = quota.copy()
    for client in range(num_clients):
        # The classes with most places left go first: only so does no client, at the end, find
        # fewer than `classes_per_client` different classes with a place left.
        chosen = np.lexsort((rng.random(num_classes), -unfilled))[:classes_per_client]
        unfilled[chosen] -= 1
        for label in chosen:
            holders[label].append(client)
    pieces: list[list[np.ndarray]] = [[] for _ in range(num_clients)]
    for rows, clients in zip(members, holders, strict=True):
        shares = np.array_split(rng.permutation(rows), len(clients))
        for client, share in zip(rng.permutation(clients), shares, strict=True):
            pieces[client].append(share)
    return [np.sort(np.concatenate(rows)) for rows in pieces]


def dirichlet(
    labels: np.ndarray, num_clients: int, alpha: float, seed: int, least: int | None = None
) -> list[np.ndarray]:
    """Splits each class over the clients in proportions drawn from a symmetric Dirichlet.

    A client that already holds its even share of all examples gets none of the following
    classes. The draw is repeated until every client has `least` examples, but not for ever.

    Args:
      labels: `[n]` integers.
      num_clients: how many clients.
      alpha: the concentration; the smaller, the fewer classes a client has.
      seed: whole number; the same seed gives the same partition.
      least: what every client must have; None means 10, or half an even share if that is less.

    Returns:
      `num_clients` arrays of row numbers, int64.

    Raises:
      UserError: an argument makes no sense, or no draw gave every client `least` examples; the
        sentence then names values that do.

    >>> labels = np.repeat(np.arange(10), 100)
    >>> clients = dirichlet(labels, num_clients=5, alpha=0.1, seed=0)
    >>> sum(map(len, clients)), min(map(len, clients)) >= 10
    (1000, True)
    """
    _, members = _check(labels, num_clients, seed)
    if not 0 < alpha <= _LARGEST_ALPHA:
        raise UserError(f"alpha must be above 0 and at most {_LARGEST_ALPHA:g}, not {alpha!r}.")
    sizes = [len(rows) for rows in members]
    wanted = _least(sum(sizes), num_clients) if least is None else checks.whole("least", least, 1)
    if wanted * num_clients > sum(sizes):
        raise UserError(
            f"{sum(sizes)} examples cannot give {num_clients} clients at least {wanted} each: "
            f"use least={sum(sizes) // num_clients} or at most {sum(sizes) // wanted} clients."
        )
    rng = np.random.default_rng(seed)
    counts, reached = _draw_counts(sizes, num_clients, alpha, rng, wanted, _MOST_ATTEMPTS)
    if reached < wanted:
        raise UserError(
            f"No Dirichlet draw in {_MOST_ATTEMPTS} with alpha={alpha:g} gave each of "
            f"{num_clients} clients {wanted} examples; the best left one with {reached}: "
            f"use {_advice(sizes, num_clients, alpha, seed, least, reached)}."
        )
    pieces = []
    for rows, row_counts in zip(members, counts, strict=True):
        pieces.append(np.split(rng.permutation(rows), np.cumsum(row_counts)[:-1]))
    return [np.sort(np.concatenate(rows)) for rows in zip(*pieces, strict=True)]


def _check(labels: np.ndarray, num_clients: int, seed: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Returns the classes there are, and the rows of each, once the arguments make sense."""
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise UserError(
            f"A partition needs one whole-number label per example, not labels of shape "
            f"{labels.shape} and dtype {labels.dtype}."
        )
    checks.whole("seed", seed, 0)
    if checks.whole("num_clients", num_clients, 1) > len(labels):
        raise UserError(
            f"{len(labels)} examples cannot be dealt out to {num_clients} clients: "
            f"use at most {len(labels)} clients."
        )
    classes, inverse = np.unique(labels, return_inverse=True)
    return classes, [np.flatnonzero(inverse == index) for index in range(len(classes))]


def _least(num_examples: int, num_clients: int) -> int:
    return max(1, min(10, num_examples // (2 * num_clients)))


def _draw_counts(
    sizes: list[int],
    num_clients: int,
    alpha: float,
    rng: np.random.Generator,
    least: int,
    attempts: int,
) -> tuple[np.ndarray, int]:
    """Returns how many examples of each class go to each client, `[C, clients]`.

    Only numbers are drawn here, no rows are moved, so that a thousand attempts are cheap. With
    it comes the smallest client's size: below `least` if every attempt failed.
    """
    even_share = sum(sizes) / num_clients
    best, best_smallest = np.zeros((len(sizes), num_clients), np.int64), -1
    for _ in range(attempts):
        counts = np.zeros_like(best)
        held = np.zeros(num_clients, np.int64)
        for label, size in enumerate(sizes):
            # Drawing over the clients that still have room is the same as drawing over all,
            # zeroing the full ones and renormalizing, but never divides by zero. Somebody has
            # room: otherwise all examples would be dealt out already.
            room = np.flatnonzero(held < even_share)
            shares = rng.dirichlet(np.full(len(room), float(alpha)))
            edges = np.minimum(np.cumsum(shares)[:-1] * size, size).astype(np.int64)
            counts[label, room] = np.diff(edges, prepend=0, append=size)
            held += counts[label]
        if held.min() > best_smallest:
            best, best_smallest = counts, int(held.min())
        if best_smallest >= least:
            break
    return best, best_smallest


def _advice(
    sizes: list[int], num_clients: int, alpha: float, seed: int, least: int | None, reached: int
) -> str:
    """Returns the nearest settings that were tried and found to work."""

    def works(clients: int, concentration: float) -> bool:
        wanted = _least(sum(sizes), clients) if least is None else least
        rng = np.random.default_rng(seed)
        attempts = _ATTEMPTS_FOR_ADVICE
        return _draw_counts(sizes, clients, concentration, rng, wanted, attempts)[1] >= wanted

    # Rounded as the sentence prints them, so that what was tried is what the user will type.
    alphas = (float(f"{alpha * 2**doubling:g}") for doubling in range(1, 15))
    populations = (num_clients >> halving for halving in range(1, num_clients.bit_length()))
    larger = next((value for value in alphas if works(num_clients, value)), None)
    fewer = next((value for value in populations if works(value, alpha)), None)
    options = [
        "a larger alpha" if larger is None else f"alpha={larger:g}",
        "fewer clients" if fewer is None else f"num_clients={fewer}",
    ]
    if reached >= 2:  # with fewer, a client cannot both train and be tested
        options.append(f"least={reached}")
    return " or ".join(options)
