"""Intervals of means over clients, by resampling clients."""

from __future__ import annotations

import numpy as np

RESAMPLES = 9999


def interval_of_mean(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Returns the 95 % percentile interval of the mean over clients.

    The same seed resamples the same clients, so that the values of two methods may be their
    differences: a paired bootstrap.

    Args:
      values: `[n]`, a value for each client; two or more.
      seed: The seed of the resampling.
    """
    return _interval((values,), np.mean, seed)


def interval_of_ratio(sums: np.ndarray, counts: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Returns the 95 % percentile interval of `sum(sums) / sum(counts)`, resampling clients.

    Args:
      sums: `[n]`, the sum of a metric over each client's examples; two clients or more.
      counts: `[n]`, the number of examples of each client, above 0.
      seed: The seed of the resampling.
    """

    def ratio(sums, counts, axis):
        return sums.sum(axis=axis) / counts.sum(axis=axis)

    return _interval((sums, counts), ratio, seed)


def _interval(data, statistic, seed) -> tuple[float, float]:
    from scipy import stats  # takes a third of a second

    found = stats.bootstrap(
        data,
        statistic,
        n_resamples=RESAMPLES,
        batch=max(1, 2_000_000 // len(data[0])),
        method="percentile",
        paired=len(data) > 1,
        vectorized=True,
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)
