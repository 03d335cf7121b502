"""Summaries across clients, and across the rounds of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Summary(NamedTuple):
    """One metric of one model, summarized across clients.

    Attributes:
      weighted: The mean over clients, weighted by their examples.
      unweighted: The mean over clients.
      std: The standard deviation over clients.
      worst_decile: The mean over the 10 % of clients with the worst values, at least one client.
    """

    weighted: float
    unweighted: float
    std: float
    worst_decile: float


def summarize(
    sums: np.ndarray, sizes: np.ndarray, *, more_is_better: bool = True
) -> Summary | None:
    """Summarizes a metric across clients.

    Args:
      sums: `[n]`, the sum of the metric over each client's examples.
      sizes: `[n]`, the number of examples of each client; clients without any are left out.
      more_is_better: Whether the worst clients are those with the smallest means.

    Returns:
      The summary; None if no client has an example.

    Example:
      >>> summarize(np.array([9.0, 1.0, 0.0]), np.array([10, 2, 0]))
      Summary(weighted=0.8333333333333334, unweighted=0.7, std=0.2, worst_decile=0.5)
    """
    sums = np.asarray(sums, np.float64)
    some = np.asarray(sizes) > 0
    if not some.any():
        return None
    means = sums[some] / sizes[some]
    from_the_worst = np.sort(means) if more_is_better else np.sort(means)[::-1]
    worst = from_the_worst[: math.ceil(len(means) / 10)]
    return Summary(
        weighted=float(sums[some].sum() / sizes[some].sum()),
        unweighted=float(means.mean()),
        std=float(means.std()),
        worst_decile=float(worst.mean()),
    )


def best_of(scores: Sequence[float], *, more_is_better: bool = True) -> int:
    """Returns the index of the best score, the first of equal ones; NaN is never the best."""
    worst, find = (-math.inf, np.argmax) if more_is_better else (math.inf, np.argmin)
    values = np.array(scores, float)
    return int(find(np.where(np.isfinite(values), values, worst)))


def over_rounds(
    test: Sequence[Summary],
    validation: Sequence[Summary | None],
    unseen: Sequence[Summary | None],
    *,
    more_is_better: bool = True,
) -> dict[str, float | None]:
    """Summarizes a run across rounds, as in `result.json`.

    The model is selected on validation examples. The best test score over all rounds is included
    only because other papers report it.

    Args:
      test: The summaries of the participating clients on test examples, one per evaluation.
      validation: The same on validation examples; None if there are none.
      unseen: The summaries of the held-out clients on their test examples; None if there are none.
      more_is_better: Whether the best round has the largest score, or the smallest.

    Returns:
      The scores; a round whose score is not finite is never the best one.
    """
    last = test[-1]
    best = None
    name = "max" if more_is_better else "min"

    def best_round(summaries):
        scores = [summary.weighted for summary in summaries]
        return best_of(scores, more_is_better=more_is_better)

    if all(summary is not None for summary in validation):
        best = test[best_round(validation)].weighted
    result = {
        "last": last.weighted,
        "at_best_validation": best,
        f"{name}_over_rounds": test[best_round(test)].weighted,
        "unweighted_last": last.unweighted,
        "std": last.std,
        "worst_decile": last.worst_decile,
    }
    if unseen[-1] is not None:
        result["unseen_last"] = unseen[-1].weighted
    return result
