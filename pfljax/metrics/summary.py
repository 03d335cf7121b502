"""Summaries across clients, and across the rounds of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

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


def personalization_bias(values: np.ndarray) -> float:
    """Returns the deviation of scores over clients; zero if all clients have the same.

        sqrt(mean_k || f_k - mean_j f_j ||^2)

    Args:
      values: `[n]`, a score of each client, of which this is the standard deviation; or `[n, m]`,
        a vector of `m` scores `f_k` of each client.

    References:
      "Exploring Safety-Utility Trade-Offs in Personalized Language Models", 2024,
      https://arxiv.org/abs/2406.11107 (personalization bias).

    Example:
      >>> personalization_bias(np.array([[0.5, 1.0], [1.1, 0.2]]))
      0.5
    """
    return float(np.sqrt(np.var(np.asarray(values, np.float64), axis=0).sum()))


def result_key(model: str, score: str) -> str:
    """Returns the key of a model's scores in `result.json`; accuracies have a key of their own.

    Example:
      >>> result_key("personal", "accuracy"), result_key("global", "mse")
      ('personal_accuracy', 'global_score')
    """
    return f"{model}_accuracy" if score == "accuracy" else f"{model}_score"


def _best(values: Sequence[float | None], more_is_better: bool) -> int | None:
    """Returns the index of the first of the best values; None if one of them is missing."""
    if any(value is None for value in values):
        return None
    find, worst = (np.argmax, -math.inf) if more_is_better else (np.argmin, math.inf)
    numbers = np.array(values, np.float64)
    return int(find(np.where(np.isfinite(numbers), numbers, worst)))


def best_round(
    rows: Sequence[dict[str, Any]],
    model: str,
    score: str,
    *,
    more_is_better: bool = True,
    mean: str = "weighted",
) -> int | None:
    """Returns the row in which a model has the best score on validation examples.

    Of equally good rows it is the first one; a score that is not finite is never the best.

    Args:
      rows: The rows of `metrics.jsonl`.
      model: 'personal' or 'global'.
      score: The metric by which rounds are chosen.
      more_is_better: Whether the best row has the largest score, or the smallest.
      mean: The mean over clients, 'weighted' by their examples or 'unweighted'.

    Returns:
      The index of the row; None if a row has no validation score.
    """
    key = f"{model}/validation_{score}_{mean}"
    return _best([row.get(key) for row in rows], more_is_better)


def across_rounds(
    rows: Sequence[dict[str, Any]],
    model: str,
    metric: str,
    chosen: int | None,
    *,
    more_is_better: bool = True,
) -> dict[str, float | None]:
    """Returns the values of a metric in the chosen and in the best round.

    Args:
      rows: The rows of `metrics.jsonl`.
      model: 'personal' or 'global'.
      metric: The metric.
      chosen: The result of `best_round` for the score; the same for all metrics, because one round
        is chosen, and not another one for each metric.
      more_is_better: Whether the largest value of the metric is the best one.

    Returns:
      Test values: 'at_best_validation', and 'max_over_rounds' or 'min_over_rounds', which is
      included only because other papers report it. None if a row has no value.
    """
    values = [row.get(f"{model}/test_{metric}_weighted") for row in rows]
    best = _best(values, more_is_better)
    return {
        "at_best_validation": None if chosen is None else values[chosen],
        f"{'max' if more_is_better else 'min'}_over_rounds": None if best is None else values[best],
    }


def over_rounds(
    rows: Sequence[dict[str, Any]],
    model: str,
    metric: str,
    chosen: int | None,
    *,
    more_is_better: bool = True,
) -> dict[str, float | None] | None:
    """Summarizes a metric of a run across rounds, as in `result.json`.

    Args:
      rows: The rows of `metrics.jsonl`.
      model: 'personal' or 'global'.
      metric: The metric.
      chosen: As in `across_rounds`.
      more_is_better: As in `across_rounds`.

    Returns:
      Test values of the participating clients, and of the held-out ones as 'unseen_last'; None
      without a value in the last row.
    """
    last, prefix = rows[-1], f"{model}/test_{metric}_"
    if f"{prefix}weighted" not in last:
        return None
    result = {
        "last": last[f"{prefix}weighted"],
        **across_rounds(rows, model, metric, chosen, more_is_better=more_is_better),
        "unweighted_last": last[f"{prefix}unweighted"],
        "std": last[f"{prefix}std"],
        "worst_decile": last[f"{prefix}worst_decile"],
    }
    unseen = f"{model}/unseen_test_{metric}_weighted"
    if unseen in last:
        result["unseen_last"] = last[unseen]
    return result
