"""Summaries across clients, and across the rounds of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Summary(NamedTuple):
    """One metric of one model, across clients.

    Attributes:
      weighted: mean over all examples: clients count by their examples.
      unweighted: mean over clients.
      std: standard deviation over clients.
      worst_decile: mean over the worst tenth of the clients, at least one.
    """

    weighted: float
    unweighted: float
    std: float
    worst_decile: float


def summarize(
    sums: np.ndarray, sizes: np.ndarray, *, more_is_better: bool = True
) -> Summary | None:
    """Summarizes a metric.

    Args:
      sums: `[n]`, each client's sum over its examples.
      sizes: `[n]`, each client's number of examples; clients without any are left out.
      more_is_better: whether the worst clients are those with the smallest means.

    Returns:
      The summary; None where no client has an example.

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


def over_rounds(
    test: Sequence[Summary],
    validation: Sequence[Summary | None],
    unseen: Sequence[Summary | None],
    *,
    more_is_better: bool = True,
) -> dict[str, float | None]:
    """Summarizes a run, as `result.json` holds it.

    The model is selected on validation examples; the best of all rounds on test examples is
    kept only because other papers publish it.

    Args:
      test: of the participating clients, one for each evaluation.
      validation: likewise, None where there are no validation examples.
      unseen: of the clients held out, on their test examples; None where there are none.
      more_is_better: whether the best is the maximum over rounds, or the minimum.

    Returns:
      The scores; a round whose score is not finite is never the best one.
    """
    last = test[-1]
    best = None
    name, find = ("max", np.argmax) if more_is_better else ("min", np.argmin)
    worst = -math.inf if more_is_better else math.inf

    def best_of(summaries):
        scores = np.array([summary.weighted for summary in summaries])
        return int(find(np.where(np.isfinite(scores), scores, worst)))

    if all(summary is not None for summary in validation):
        best = test[best_of(validation)].weighted
    result = {
        "last": last.weighted,
        "at_best_validation": best,
        f"{name}_over_rounds": test[best_of(test)].weighted,
        "unweighted_last": last.unweighted,
        "std": last.std,
        "worst_decile": last.worst_decile,
    }
    if unseen[-1] is not None:
        result["unseen_last"] = unseen[-1].weighted
    return result
