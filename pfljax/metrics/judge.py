"""Metrics of a judge that says which of two answers is preferred, and how certain it is.

Shapes in the docstrings: `n` judgements.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pfljax.errors import UserError


class RiskCoverage(NamedTuple):
    """The error of a judge that abstains below a confidence, for every number of kept judgements.

    Attributes:
      coverage: `[n]`, the fraction of judgements that are kept: 1 / n, 2 / n, ..., 1.
      risk: `[n]`, the fraction of wrong ones among the kept, the most confident ones; where equal
        confidences are kept in part, the mean over their orders.
    """

    coverage: np.ndarray
    risk: np.ndarray

    @property
    def area(self) -> float:
        """The area under the curve (AURC), the mean of the risk over all coverages."""
        return float(np.mean(self.risk))


def agreement(correct: np.ndarray, confidence: np.ndarray, least: float = 0.0) -> tuple[float, int]:
    """Returns the fraction of correct judgements with some confidence, and their number.

    Args:
      correct: `[n]` bool.
      confidence: `[n]`, in any unit.
      least: The smallest confidence of a judgement that counts.

    Returns:
      The fraction, NaN without such judgements, and the number.

    Example:
      >>> agreement(np.array([True, False, True]), np.array([90, 40, 80]), least=80)
      (1.0, 2)
    """
    kept = np.asarray(correct, bool)[np.asarray(confidence) >= least]
    return (float(kept.mean()) if len(kept) else float("nan")), len(kept)


def risk_coverage(correct: np.ndarray, confidence: np.ndarray) -> RiskCoverage:
    """Returns the risk-coverage curve.

        risk(i / n) = fraction of wrong judgements among the i most confident ones

    Args:
      correct: `[n]` bool.
      confidence: `[n]`, finite, in any unit.

    Raises:
      UserError: There is no judgement, or a confidence is not finite.

    References:
      El-Yaniv, Wiener, "On the Foundations of Noise-free Selective Classification", 2010,
      https://www.jmlr.org/papers/v11/el-yaniv10a.html.
      Geifman, Uziel, El-Yaniv, "Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers",
      2019, https://arxiv.org/abs/1805.08206 (AURC).
    """
    wrong, confidence = ~np.asarray(correct, bool), np.asarray(confidence, np.float64)
    _require_judgements(confidence)
    groups, members = np.unique(-confidence, return_inverse=True)
    # In any order of equal confidences, each of them is wrong with the same probability.
    error = np.bincount(members, wrong, len(groups)) / np.bincount(members, minlength=len(groups))
    errors = np.cumsum(error[np.sort(members)])
    kept = np.arange(1, len(wrong) + 1)
    return RiskCoverage(kept / len(wrong), errors / kept)


def calibration_error(
    correct: np.ndarray, probability: np.ndarray, num_bins: int = 10
) -> tuple[float, np.ndarray]:
    """Returns the expected calibration error (ECE), and the bins of the reliability diagram.

        ECE = sum over bins b of n_b / n |fraction correct in b - mean probability in b|

    Args:
      correct: `[n]` bool.
      probability: `[n]` in [0, 1], the probability of being correct that the judge states.
      num_bins: Number of bins of equal width; a bin contains its upper edge, the first one also 0.

    Returns:
      The error, and `[num_bins, 3]`: mean probability, fraction of correct judgements and number of
      judgements of each bin; NaN, NaN and 0 for an empty bin.

    Raises:
      UserError: There is no judgement, or a probability is outside [0, 1].

    References:
      Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", 2017,
      https://arxiv.org/abs/1706.04599.
    """
    correct, probability = np.asarray(correct, bool), np.asarray(probability, np.float64)
    _require_judgements(probability)
    if probability.min() < 0 or probability.max() > 1:
        raise UserError(
            "A stated probability of a judgement is outside [0, 1]; divide percentages by 100."
        )
    # The product of a decimal fraction and the number of bins may exceed an edge by its rounding.
    bins = np.ceil(np.round(probability * num_bins, 9)).astype(int)
    bins = np.clip(bins - 1, 0, num_bins - 1)
    counts = np.bincount(bins, minlength=num_bins)
    with np.errstate(invalid="ignore"):
        stated = np.bincount(bins, probability, num_bins) / counts
        observed = np.bincount(bins, correct, num_bins) / counts
    gaps = np.where(counts > 0, np.abs(observed - stated), 0)
    return float(np.sum(gaps * counts) / counts.sum()), np.stack([stated, observed, counts], axis=1)


def _require_judgements(confidence: np.ndarray) -> None:
    if not len(confidence) or not np.isfinite(confidence).all():
        raise UserError(
            "The judgements are empty, or a confidence is missing; keep those with a confidence."
        )
