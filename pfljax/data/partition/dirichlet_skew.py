"""Label skew drawn from Dirichlet distributions, in four forms, which all terminate.

`dirichlet` and `dirichlet_extended` draw, for each class, its distribution over the clients;
`dirichlet_by_client` and `dirichlet_balanced` draw, for each client, its mixture of classes.
`drawing.py` makes the draws satisfy a minimum size.
"""

from __future__ import annotations

import numpy as np

from pfljax.data import checks
from pfljax.data.partition import drawing
from pfljax.data.partition.label_skew import assign_classes
from pfljax.data.partition.pool import gather, members_by_class
from pfljax.errors import UserError

_LARGEST_ALPHA = 1e9  # gamma draws overflow far above; the fractions are equal long before
_PASSES = 10  # of the balanced partition, over all clients


def dirichlet(
    labels: np.ndarray, num_clients: int, alpha: float, seed: int, min_size: int | None = None
) -> list[np.ndarray]:
    """Splits each class over the clients in proportions drawn from a symmetric Dirichlet.

    A client that has reached its quota, an equal fraction of all examples, gets none of the
    following classes. The draw is repeated until every client has `min_size` examples; after a
    thousand draws, only clients with fewer examples are redrawn, a bounded number of times.

    Args:
      labels: `[n]` integers, the label of each example.
      num_clients: Number of clients.
      alpha: The concentration; with smaller values, clients have fewer classes.
      seed: A whole number; the same seed gives the same partition.
      min_size: The minimum number of examples of a client; None means 10, or half of an equal
        fraction of all examples if that is less.

    Returns:
      `num_clients` arrays of row indices, int64.

    Raises:
      UserError: An argument is invalid, or no draw gave every client `min_size` examples; the
        message suggests values that work.

    >>> labels = np.repeat(np.arange(10), 100)
    >>> clients = dirichlet(labels, num_clients=5, alpha=0.1, seed=0)
    >>> sum(map(len, clients)), min(map(len, clients)) >= 10
    (1000, True)
    """
    _, members = members_by_class(labels, num_clients, seed)
    sizes = [len(rows) for rows in members]
    rng = np.random.default_rng(seed)

    def draw(clients, concentration, wanted, budget):
        def log_weights(redrawn, stream):
            return drawing.log_gamma(np.full((len(sizes), len(redrawn)), concentration), stream)

        # A trial uses a separate generator, since the rows are drawn after the real draw.
        own = rng if budget is drawing.FULL else np.random.default_rng(seed)
        drawn = drawing.draw_counts(sizes, clients, concentration, own, wanted, budget.attempts)
        if drawn[1] >= wanted:
            return drawn
        redrawn = drawing.redraw_small(
            sizes, log_weights, clients, wanted, seed, budget.redraws, capped=True
        )
        return max(drawn, redrawn, key=lambda outcome: outcome[1])

    request = drawing.Request(sum(sizes), num_clients, _concentration(alpha), min_size)
    return gather(members, drawing.counts_or_refusal(request, draw), rng)


def dirichlet_by_client(
    labels: np.ndarray, num_clients: int, alpha: float, seed: int, min_size: int | None = None
) -> list[np.ndarray]:
    """Splits each class in proportion to the clients' Dirichlet mixtures of classes.

    Client k draws q_k from Dirichlet(alpha C p), where p are the fractions of the C classes in the
    pool; class c is split in proportion to q_kc. Thus every example is assigned, and the size of a
    client depends on the mixtures of the others. Clients with fewer than `min_size` examples are
    redrawn, a bounded number of times.

    Args:
      labels: `[n]` integers, the label of each example.
      num_clients: Number of clients.
      alpha: The concentration; with smaller values, clients have fewer classes.
      seed: A whole number; the same seed gives the same partition.
      min_size: The minimum number of examples of a client; None means 10, or half of an equal
        fraction of all examples if that is less.

    Returns:
      `num_clients` arrays of row indices, int64.

    Raises:
      UserError: An argument is invalid, or no draw gave every client `min_size` examples; the
        message suggests values that work.

    >>> labels = np.repeat(np.arange(10), 100)
    >>> clients = dirichlet_by_client(labels, num_clients=5, alpha=0.1, seed=0)
    >>> sum(map(len, clients)), min(map(len, clients)) >= 10
    (1000, True)
    """
    _, members = members_by_class(labels, num_clients, seed)
    sizes = np.array([len(rows) for rows in members])
    prior = len(sizes) * sizes / sizes.sum()

    def draw(clients, concentration, wanted, budget):
        def log_mixtures(redrawn, stream):
            parameters = np.broadcast_to(concentration * prior, (len(redrawn), len(sizes))).T
            weights = drawing.log_gamma(parameters, stream)
            return weights - drawing.log_sum(weights)

        return drawing.redraw_small(sizes, log_mixtures, clients, wanted, seed, budget.redraws)

    request = drawing.Request(int(sizes.sum()), num_clients, _concentration(alpha), min_size)
    counts = drawing.counts_or_refusal(request, draw)
    return gather(members, counts, np.random.default_rng(seed))


def dirichlet_extended(
    labels: np.ndarray,
    num_clients: int,
    alpha: float,
    classes_per_client: int,
    seed: int,
    min_size: int | None = None,
) -> list[np.ndarray]:
    """Assigns `classes_per_client` classes to each client, and splits each class by a Dirichlet.

    After Li and Lyu, "Convergence Analysis of Sequential Federated Learning on Heterogeneous
    Data", 2023, https://arxiv.org/abs/2311.03154. As in `pathological`, every class is assigned to
    the same number of clients, to within one. Clients with fewer than `min_size` examples are
    redrawn, a bounded number of times. A fraction may be rounded to no example.

    Args:
      labels: `[n]` integers, the label of each example.
      num_clients: Number of clients.
      alpha: The concentration; with smaller values, a class is split more unequally.
      classes_per_client: Number of classes of a client, at most the number of classes.
      seed: A whole number; the same seed gives the same partition.
      min_size: The minimum number of examples of a client; None means 10, or half of an equal
        fraction of all examples if that is less.

    Returns:
      `num_clients` arrays of row indices, int64.

    Raises:
      UserError: An argument is invalid, some class would be assigned to no client, or no draw gave
        every client `min_size` examples; the message suggests values that work.

    >>> labels = np.repeat(np.arange(10), 100)
    >>> clients = dirichlet_extended(labels, 5, alpha=1.0, classes_per_client=4, seed=0)
    >>> sum(map(len, clients)), max(len(np.unique(labels[rows])) for rows in clients) <= 4
    (1000, True)
    """
    classes, members = members_by_class(labels, num_clients, seed)
    sizes = [len(rows) for rows in members]

    def draw(clients, concentration, wanted, budget):
        stream = np.random.default_rng(seed)
        holders = assign_classes(classes, members, clients, classes_per_client, stream)
        held = np.zeros((len(classes), clients), bool)
        for label, own in enumerate(holders):
            held[label, own] = True

        def log_weights(redrawn, stream):
            weights = drawing.log_gamma(np.full((len(sizes), len(redrawn)), concentration), stream)
            return np.where(held[:, redrawn], weights, -np.inf)

        return drawing.redraw_small(sizes, log_weights, clients, wanted, seed, budget.redraws)

    request = drawing.Request(sum(sizes), num_clients, _concentration(alpha), min_size)
    counts = drawing.counts_or_refusal(request, draw)
    return gather(members, counts, np.random.default_rng(seed))


def dirichlet_balanced(
    labels: np.ndarray, num_clients: int, alpha: float, seed: int
) -> list[np.ndarray]:
    """Draws examples by each client's Dirichlet mixture of classes; all clients have equal sizes.

    Client k draws q_k from Dirichlet(alpha C p), where p are the fractions of the C classes in the
    pool, and then its examples by q_k, as in Hsu et al., "Measuring the Effects of Non-Identical
    Data Distribution for Federated Visual Classification", 2019, https://arxiv.org/abs/1909.06335
    (whose concentration is alpha C here). Exhausted classes are removed from the mixtures. The
    clients take turns, a tenth of their examples at a time, so that exhausted classes do not affect
    only the last clients.

    Args:
      labels: `[n]` integers, the label of each example.
      num_clients: Number of clients.
      alpha: The concentration; with smaller values, clients have fewer classes.
      seed: A whole number; the same seed gives the same partition.

    Returns:
      `num_clients` arrays of row indices, int64.

    Raises:
      UserError: An argument is invalid, or there are more clients than examples.

    >>> labels = np.repeat(np.arange(10), 100)
    >>> [len(rows) for rows in dirichlet_balanced(labels, num_clients=4, alpha=0.1, seed=0)]
    [250, 250, 250, 250]
    """
    _, members = members_by_class(labels, num_clients, seed)
    left = np.array([len(rows) for rows in members])
    rng = np.random.default_rng(seed)
    prior = len(left) * left / left.sum()
    parameters = np.broadcast_to(_concentration(alpha) * prior, (num_clients, len(left))).T
    mixtures = drawing.log_gamma(parameters, rng)
    counts = np.zeros((len(left), num_clients), np.int64)
    wanted = np.diff(np.arange(num_clients + 1) * left.sum() // num_clients)
    for turn in range(1, _PASSES + 1):
        for client in rng.permutation(num_clients):
            missing = wanted[client] * turn // _PASSES - counts[:, client].sum()
            # Each pass either satisfies the need or exhausts a class, so the loop terminates.
            while missing > 0:
                weights = np.where(left > 0, mixtures[:, client], -np.inf)
                fractions = np.exp(weights - weights.max())
                taken = np.minimum(rng.multinomial(missing, fractions / fractions.sum()), left)
                counts[:, client] += taken
                left -= taken
                missing -= taken.sum()
    return gather(members, counts, rng)


def _concentration(alpha: float) -> float:
    if not 0 < alpha <= _LARGEST_ALPHA:
        raise UserError(f"alpha must be above 0 and at most {_LARGEST_ALPHA:g}, not {alpha!r}.")
    return checks.number("alpha", alpha, 0, _LARGEST_ALPHA)
