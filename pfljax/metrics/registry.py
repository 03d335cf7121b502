"""The metrics of a client's whole outputs that `config.metrics` may name."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax

from pfljax.metrics import classification, ranking, regression


class Metric(NamedTuple):
    """A metric of all outputs of ONE client in a split, which is no mean over examples.

    Attributes:
      compute: `(outputs [n, ...], targets [n, ...], mask [n]) -> []`, in JAX operations. Rows whose
        mask is False are padding, with any content, and must not count. Outputs are those of
        `Task.predict` after `Task.decode`: logits `[n, C]` for classification, logits `[n, labels]`
        for multi_label, numbers `[n]` in the units of the targets for regression and rating, scores
        `[n, 1 + K]` of items for ranking. NaN for a client for which the metric is undefined; the
        means over clients leave that client out.
      tasks: The names of the tasks that it is for, keys of `pfljax.tasks.TASKS`.
      title: The name in tables and plots.
      more_is_better: Whether a larger value is better.
      percent: Whether tables and plots show percents; the values themselves are fractions.
    """

    compute: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    tasks: tuple[str, ...]
    title: str
    more_is_better: bool = True
    percent: bool = False


_CLASSES = ("classification",)
_CLASSES_OR_LABELS = ("classification", "multi_label")
_NUMBERS = ("regression", "rating")

METRICS: dict[str, Metric] = {
    "auc": Metric(classification.auc, _CLASSES_OR_LABELS, "AUC"),
    "macro_f1": Metric(classification.macro_f1, _CLASSES_OR_LABELS, "macro F1", percent=True),
    "balanced_accuracy": Metric(
        classification.balanced_accuracy, _CLASSES, "balanced accuracy", percent=True
    ),
    "ece": Metric(
        classification.ece, _CLASSES, "calibration error", more_is_better=False, percent=True
    ),
    "brier": Metric(classification.brier, _CLASSES_OR_LABELS, "Brier score", more_is_better=False),
    "nll": Metric(classification.nll, _CLASSES, "negative log-likelihood", more_is_better=False),
    "rmse": Metric(regression.rmse, _NUMBERS, "RMSE", more_is_better=False),
    "r2": Metric(regression.r2, _NUMBERS, "R2"),
    "mrr": Metric(ranking.mrr, ("ranking",), "MRR"),
}


def is_percent(name: str) -> bool:
    """Returns whether a metric, of whole outputs or of a task itself, is shown in percent."""
    return METRICS[name].percent if name in METRICS else name == "accuracy"
