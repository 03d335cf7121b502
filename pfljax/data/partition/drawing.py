"""Random numbers of examples for all clients, so that each has enough of them, in bounded time.

Only numbers are drawn here, no rows are moved, so that a thousand attempts are cheap. Weights are
handled as logarithms: with a small concentration they underflow, and what is then left of them is
no random choice any more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from pfljax.data.partition.pool import required_size
from pfljax.errors import UserError


class Request(NamedTuple):
    """What the user asked for.

    Attributes:
      total: examples in the pool.
      num_clients: that they are for.
      alpha: the concentration.
      min_size: what every client must have; None for the rule of `required_size`.
    """

    total: int
    num_clients: int
    alpha: float
    min_size: int | None


class Budget(NamedTuple):
    """How often may be drawn.

    Attributes:
      attempts: for all clients at once.
      redraws: for the clients that have too few.
    """

    attempts: int
    redraws: int


FULL = Budget(attempts=1000, redraws=300)
# A trial uses the same random numbers and ends sooner, so that what it finds holds.
_TRIAL = Budget(attempts=30, redraws=50)

# `(num_clients, alpha, min_size, budget) -> counts [C, num_clients], size of the smallest client`.
Draw = Callable[[int, float, int, Budget], tuple[np.ndarray, int]]


def counts_or_refusal(request: Request, draw: Draw) -> np.ndarray:
    """Draws, and refuses with advice where the draw did not give every client enough.

    Args:
      request: what the user asked for.
      draw: what is tried.

    Returns:
      `[C, num_clients]` int64.

    Raises:
      UserError: the smallest client has too few examples; names values that were tried and work.
    """
    total, num_clients, alpha, min_size = request
    wanted = required_size(total, num_clients, min_size)
    counts, reached = draw(num_clients, alpha, wanted, FULL)
    if reached >= wanted:
        return counts
    raise UserError(
        f"No Dirichlet draw with alpha={alpha:g} gave each of {num_clients} clients {wanted} "
        f"examples; the best left one with {reached}: use {_advice(request, draw, reached)}."
    )


def _advice(request: Request, draw: Draw, reached: int) -> str:
    """Returns the nearest settings that were tried and found to work."""
    total, num_clients, alpha, min_size = request

    def works(clients: int, concentration: float, min_size: int | None) -> bool:
        try:
            wanted = required_size(total, clients, min_size)
            return draw(clients, concentration, wanted, _TRIAL)[1] >= wanted
        except UserError:
            return False

    # Rounded as the sentence prints them, so that what was tried is what the user will type.
    alphas = (float(f"{alpha * 2**doubling:g}") for doubling in range(1, 15))
    populations = (num_clients >> halving for halving in range(1, num_clients.bit_length()))
    # With fewer than two examples, a client cannot both train and be tested.
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
    """Spreads each class over the clients that still have room, until all have `min_size` examples.

    Args:
      sizes: of the `C` classes.
      num_clients: how many clients.
      alpha: the concentration of the symmetric Dirichlet.
      rng: what to draw with.
      min_size: what every client should have.
      attempts: how often to draw, at most.

    Returns:
      The best draw `[C, num_clients]`, and the smallest client's size in it: below `min_size` if
      every attempt failed.
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
            # Rounding down gives what is left over to the last client. Published partitions
            # depend on it; `_cut` rounds to the nearest.
            edges = np.minimum(np.cumsum(shares)[:-1] * size, size).astype(np.int64)
            counts[label, room] = np.diff(edges, prepend=0, append=size)
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
    """Spreads each class in proportion to weights; clients with too few examples draw theirs anew.

    Where many clients must all have enough, one of them nearly always has not, and drawing for
    all of them again would never end. Clients draw independently, so it is enough to draw again
    for those that failed.

    Args:
      sizes: of the `C` classes.
      log_weights: `(clients [k], rng) -> [C, k]` logarithms of weights; minus infinity for none.
      num_clients: how many clients.
      min_size: what every client should have.
      seed: of the partition; the stream of random numbers is one of its own.
      redraws: how often to draw, at most.
      capped: whether a client that holds its even share gets none of the following classes.

    Returns:
      The best draw `[C, num_clients]`, and the smallest client's size in it: below `min_size` if
      that was not enough.
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
    """Spreads one class after the other over the clients that still have room."""
    even_share = sum(sizes) / weights.shape[1]
    counts = np.zeros(weights.shape, np.int64)
    held = np.zeros(weights.shape[1], np.int64)
    for label, size in enumerate(sizes):
        room = np.flatnonzero(held < even_share)
        counts[label, room] = _cut(np.array([size]), weights[label : label + 1, room])[0]
        held += counts[label]
    return counts


def _cut(sizes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Cuts each class in proportion to weights `[C, k]`, given as logarithms, to within one."""
    shares = np.exp(weights - weights.max(axis=1, keepdims=True))
    edges = np.cumsum(shares, axis=1)
    edges = np.rint(edges / edges[:, -1:] * sizes[:, np.newaxis]).astype(np.int64)
    return np.diff(edges, prepend=0)


def log_gamma(alpha: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draws logarithms of gamma variables of shapes `alpha`, however small these are.

    Args:
      alpha: positive shape parameters, an array of any shape.
      rng: what to draw with.

    Returns:
      Finite float64 of the same shape.
    """
    # If G is gamma(alpha + 1) and E exponential, then G exp(-E / alpha) is gamma(alpha).
    exponential = rng.standard_exponential(np.shape(alpha))
    return np.log(rng.standard_gamma(alpha + 1)) - exponential / np.maximum(alpha, 1e-300)


def log_sum(weights: np.ndarray) -> np.ndarray:
    """Returns the logarithm of the sum over the first axis of exponentials.

    Args:
      weights: `[C, k]`, at least one of each column finite.
    """
    largest = weights.max(axis=0)
    return largest + np.log(np.exp(weights - largest).sum(axis=0))
