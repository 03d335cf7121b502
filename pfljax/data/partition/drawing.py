"""Draws of example counts for all clients that satisfy a minimum size, in bounded time.

Only counts are drawn here, and no rows are moved, so that a thousand attempts are cheap. Weights
are represented by their logarithms: with a small concentration they underflow, and the remaining
ones would not be a random choice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from pfljax.data.partition.pool import required_size
from pfljax.errors import UserError


class Request(NamedTuple):
    """The user's request.

    Attributes:
      total: Number of examples in the pool.
      num_clients: Number of clients.
      alpha: The concentration.
      min_size: The minimum number of examples of a client; None for the rule of `required_size`.
    """

    total: int
    num_clients: int
    alpha: float
    min_size: int | None


class Budget(NamedTuple):
    """The maximum number of draws.

    Attributes:
      attempts: Number of draws for all clients at once.
      redraws: Number of draws for the clients with too few examples.
    """

    attempts: int
    redraws: int


FULL = Budget(attempts=1000, redraws=300)
# A trial uses a prefix of the same random numbers, so that its result holds for a full draw.
_TRIAL = Budget(attempts=30, redraws=50)

# `(num_clients, alpha, min_size, budget) -> counts [C, num_clients], size of the smallest client`.
Draw = Callable[[int, float, int, Budget], tuple[np.ndarray, int]]


def counts_or_refusal(request: Request, draw: Draw) -> np.ndarray:
    """Draws counts, and refuses with advice if a client has too few examples.

    Args:
      request: The user's request.
      draw: The draw of the partition.

    Returns:
      `[C, num_clients]` int64.

    Raises:
      UserError: The smallest client has too few examples; the message suggests values that were
        tried and work.
    """
    total, num_clients, alpha, min_size = request
    wanted = required_size(total, num_clients, min_size)
    counts, reached = draw(num_clients, alpha, wanted, FULL)
    if reached >= wanted:
        return counts
    raise UserError(
        f"No Dirichlet draw with alpha={alpha:g} gave each of {num_clients} clients {wanted} "
        f"examples; in the best, one had {reached}: use {_advice(request, draw, reached)}."
    )


def _advice(request: Request, draw: Draw, reached: int) -> str:
    """Returns the nearest settings that were tried and work."""
    total, num_clients, alpha, min_size = request

    def works(clients: int, concentration: float, min_size: int | None) -> bool:
        try:
            wanted = required_size(total, clients, min_size)
            return draw(clients, concentration, wanted, _TRIAL)[1] >= wanted
        except UserError:
            return False

    # Rounded as in the message, so that the value tried is the one that the user enters.
    alphas = (float(f"{alpha * 2**doubling:g}") for doubling in range(1, 15))
    populations = (num_clients >> halving for halving in range(1, num_clients.bit_length()))
    # With fewer than two examples, a client cannot have both training and test examples.
    wanted = required_size(total, num_clients, min_size)
    halves = {wanted >> halving for halving in range(1, wanted.bit_length())}
    smaller = (value for value in sorted(halves | {reached}, reverse=True) if value >= 2)
    larger = next((value for value in alphas if works(num_clients, value, min_size)), None)
    fewer = next((value for value in populations if works(value, alpha, min_size)), None)
    lower = next((value for value in smaller if works(num_clients, alpha, value)), None)
    found = {"alpha": larger, "num_clients": fewer, "min_size": lower}
    options = [f"{name}={value:g}" for name, value in found.items() if value is not None]
    return " or ".join(options) or "fewer clients and a smaller min_size"


def draw_counts(
    sizes: Sequence[int],
    num_clients: int,
    alpha: float,
    rng: np.random.Generator,
    min_size: int,
    attempts: int,
) -> tuple[np.ndarray, int]:
    """Splits each class over the clients below their quota, until all have `min_size` examples.

    Args:
      sizes: The sizes of the `C` classes.
      num_clients: Number of clients.
      alpha: The concentration of the symmetric Dirichlet.
      rng: The random number generator.
      min_size: The minimum number of examples of a client.
      attempts: The maximum number of draws.

    Returns:
      The best draw `[C, num_clients]`, and the size of its smallest client: below `min_size` if
      every attempt failed.
    """
    quota = sum(sizes) / num_clients
    best, best_smallest = np.zeros((len(sizes), num_clients), np.int64), -1
    for _ in range(attempts):
        counts = np.zeros_like(best)
        held = np.zeros(num_clients, np.int64)
        for label, size in enumerate(sizes):
            # Drawing over the clients below their quota is the same as drawing over all, zeroing
            # the others and renormalizing, but never divides by zero. There is such a client,
            # because otherwise all examples would have been assigned.
            unfilled = np.flatnonzero(held < quota)
            fractions = rng.dirichlet(np.full(len(unfilled), float(alpha)))
            # Rounding down gives the remainder to the last client. Published partitions depend on
            # it; `_cut` rounds to the nearest.
            edges = np.minimum(np.cumsum(fractions)[:-1] * size, size).astype(np.int64)
            counts[label, unfilled] = np.diff(edges, prepend=0, append=size)
            held += counts[label]
        if held.min() > best_smallest:
            best, best_smallest = counts, int(held.min())
        if best_smallest >= min_size:
            break
    return best, best_smallest


def redraw_small(
    sizes: Sequence[int],
    log_weights: Callable[[np.ndarray, np.random.Generator], np.ndarray],
    num_clients: int,
    min_size: int,
    seed: int,
    redraws: int,
    *,
    capped: bool = False,
) -> tuple[np.ndarray, int]:
    """Splits each class in proportion to weights, redrawn for clients with too few examples.

    With many clients, at least one of them nearly always has too few examples, and redrawing all
    would never succeed. Clients draw independently, so it is enough to redraw those that failed.

    Args:
      sizes: The sizes of the `C` classes.
      log_weights: `(clients [k], rng) -> [C, k]`, logarithms of weights; minus infinity for none.
      num_clients: Number of clients.
      min_size: The minimum number of examples of a client.
      seed: The seed of the partition; a separate stream of random numbers is derived from it.
      redraws: The maximum number of draws.
      capped: Whether a client that has reached its quota gets none of the following classes.

    Returns:
      The best draw `[C, num_clients]`, and the size of its smallest client: below `min_size` if
      the redraws did not suffice.
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(2,)))
    weights = log_weights(np.arange(num_clients), rng)
    best, best_smallest = np.zeros(weights.shape, np.int64), -1
    for _ in range(redraws):
        counts = _spread_capped(sizes, weights) if capped else _cut(np.array(sizes), weights)
        held = counts.sum(axis=0)
        if held.min() > best_smallest:
            best, best_smallest = counts, int(held.min())
        if best_smallest >= min_size:
            break
        small = np.flatnonzero(held < min_size)
        weights[:, small] = log_weights(small, rng)
    return best, best_smallest


def _spread_capped(sizes: Sequence[int], weights: np.ndarray) -> np.ndarray:
    """Splits one class after the other over the clients that are below their quota."""
    quota = sum(sizes) / weights.shape[1]
    counts = np.zeros(weights.shape, np.int64)
    held = np.zeros(weights.shape[1], np.int64)
    for label, size in enumerate(sizes):
        unfilled = np.flatnonzero(held < quota)
        counts[label, unfilled] = _cut(np.array([size]), weights[label : label + 1, unfilled])[0]
        held += counts[label]
    return counts


def _cut(sizes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Splits each class in proportion to `exp(weights)` `[C, k]`, to within one example."""
    fractions = np.exp(weights - weights.max(axis=1, keepdims=True))
    edges = np.cumsum(fractions, axis=1)
    edges = np.rint(edges / edges[:, -1:] * sizes[:, np.newaxis]).astype(np.int64)
    return np.diff(edges, prepend=0)


def log_gamma(alpha: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draws logarithms of gamma variables of shapes `alpha`, however small these are.

    Args:
      alpha: Positive shape parameters, an array of any shape.
      rng: The random number generator.

    Returns:
      Finite float64 of the same shape.
    """
    # If G is gamma(alpha + 1) and E exponential, then G exp(-E / alpha) is gamma(alpha).
    exponential = rng.standard_exponential(np.shape(alpha))
    return np.log(rng.standard_gamma(alpha + 1)) - exponential / np.maximum(alpha, 1e-300)


def log_sum(weights: np.ndarray) -> np.ndarray:
    """Returns the logarithm of the sum of exponentials over the first axis.

    Args:
      weights: `[C, k]`, with at least one finite entry in each column.
    """
    largest = weights.max(axis=0)
    return largest + np.log(np.exp(weights - largest).sum(axis=0))
