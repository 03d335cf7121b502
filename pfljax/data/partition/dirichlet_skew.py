"""Label skew drawn from Dirichlet distributions: four forms, each of which ends.

`dirichlet` and `dirichlet_extended` draw, for each class, how it is spread over the clients;
`dirichlet_by_client` and `dirichlet_balanced` draw, for each client, its mixture of classes. How
their draws reach a minimum size is in `drawing.py`.
"""

from __future__ import annotations

import numpy as np

from pfljax.data import checks
from pfljax.data.partition import drawing
from pfljax.data.partition.label_skew import hand_out_classes
from pfljax.data.partition.pool import gather, members_by_class
from pfljax.errors import UserError

_LARGEST_ALPHA = 1e9  # gamma draws overflow far above; long before, the shares are equal
_PASSES = 10  # of the balanced partition, over all clients


def dirichlet(
    labels: np.ndarray, num_clients: int, alpha: float, seed: int, min_size: int | None = None
) -> list[np.ndarray]:
    """Splits each class over the clients in proportions drawn from a symmetric Dirichlet.

    A client that already holds its even share of all examples gets none of the following
    classes. The draw is repeated until every client has `min_size` examples; after a thousand draws
    only the clients that have less draw again, and not for ever.

    Args:
      labels: `[n]` integers.
      num_clients: how many clients.
      alpha: the concentration; the smaller, the fewer classes a client has.
      seed: whole number; the same seed gives the same partition.
      min_size: what every client must have; None means 10, or half an even share if that is less.

    Returns:
      `num_clients` arrays of row numbers, int64.

    Raises:
      UserError: an argument makes no sense, or no draw gave every client `min_size` examples; the
        sentence then names values that do.

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

        # A trial leaves the stream alone, in which the choice of rows follows the real draw.
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
    """Draws each client's mixture of classes from a Dirichlet, and shares each class out by it.

    Client k draws q_k from Dirichlet(alpha C p), p being the shares of the C classes in the pool;
    class c is split in proportion to q_kc, so that every example is dealt out and a client's size
    depends on how many others want its classes. Clients with less than `min_size` examples draw
    again, but not for ever.

    Args:
      labels: `[n]` integers.
      num_clients: how many clients.
      alpha: the concentration; the smaller, the fewer classes a client has.
      seed: whole number; the same seed gives the same partition.
      min_size: what every client must have; None means 10, or half an even share if that is less.

    Returns:
      `num_clients` arrays of row numbers, int64.

    Raises:
      UserError: an argument makes no sense, or no draw gave every client `min_size` examples; the
        sentence then names values that do.

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
    """Gives every client `classes_per_client` classes, and splits each over them by a Dirichlet.

    After Li and Lyu, "Convergence Analysis of Sequential Federated Learning on Heterogeneous
    Data", 2023, https://arxiv.org/abs/2311.03154. As in `pathological`, every class is
    held by equally many clients (to one). Clients with less than `min_size` examples draw again, a
    limited number of times. A share may be rounded to no example at all.

    Args:
      labels: `[n]` integers.
      num_clients: how many clients.
      alpha: the concentration; the smaller, the more unequal a class is split.
      classes_per_client: from 1 to the number of classes.
      seed: whole number; the same seed gives the same partition.
      min_size: what every client must have; None means 10, or half an even share if that is less.

    Returns:
      `num_clients` arrays of row numbers, int64.

    Raises:
      UserError: an argument makes no sense, some class would go to nobody, or no draw gave every
        client `min_size` examples; the sentence then names values that do.

    >>> labels = np.repeat(np.arange(10), 100)
    >>> clients = dirichlet_extended(labels, 5, alpha=1.0, classes_per_client=4, seed=0)
    >>> sum(map(len, clients)), max(len(np.unique(labels[rows])) for rows in clients) <= 4
    (1000, True)
    """
    classes, members = members_by_class(labels, num_clients, seed)
    sizes = [len(rows) for rows in members]

    def draw(clients, concentration, wanted, budget):
        stream = np.random.default_rng(seed)
        holders = hand_out_classes(classes, members, clients, classes_per_client, stream)
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
    """Draws each client's mixture of classes from a Dirichlet; all clients get equally much.

    Client k draws q_k from Dirichlet(alpha C p), p being the shares of the C classes in the pool,
    and then examples by it, as in Hsu et al., "Measuring the Effects of Non-Identical Data
    Distribution for Federated Visual Classification", 2019, https://arxiv.org/abs/1909.06335
    (whose concentration is alpha C here). A class that has run out is left out of the mixtures.
    The clients draw by turns, a tenth of their examples each time, so that this does not fall on
    the last ones alone.

    Args:
      labels: `[n]` integers.
      num_clients: how many clients.
      alpha: the concentration; the smaller, the fewer classes a client has.
      seed: whole number; the same seed gives the same partition.

    Returns:
      `num_clients` arrays of row numbers, int64.

    Raises:
      UserError: an argument makes no sense, or there are more clients than examples.

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
            # Each pass either meets the need or uses a class up, so that it ends.
            while missing > 0:
                weights = np.where(left > 0, mixtures[:, client], -np.inf)
                shares = np.exp(weights - weights.max())
                taken = np.minimum(rng.multinomial(missing, shares / shares.sum()), left)
                counts[:, client] += taken
                left -= taken
                missing -= taken.sum()
    return gather(members, counts, rng)


def _concentration(alpha: float) -> float:
    if not 0 < alpha <= _LARGEST_ALPHA:
        raise UserError(f"alpha must be above 0 and at most {_LARGEST_ALPHA:g}, not {alpha!r}.")
    return checks.number("alpha", alpha, 0, _LARGEST_ALPHA)
