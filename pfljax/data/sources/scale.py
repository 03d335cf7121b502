"""Means and standard deviations of numeric inputs, for normalization in tasks."""

from __future__ import annotations

import numpy as np


def mean_and_std(inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean and the standard deviation of each feature or channel.

    They are computed over the whole pool, including test examples; targets are not used.

    Args:
      inputs: `[n, ..., d]`, without missing values.

    Returns:
      `[d]` float64 each; the standard deviation of a constant feature is returned as 1.
    """
    rows = inputs.reshape(-1, inputs.shape[-1])
    mean, std = rows.mean(axis=0, dtype=np.float64), rows.std(axis=0, dtype=np.float64)
    # Rounding makes the deviation of a constant slightly positive.
    return mean, np.where(std > 1e-12 * np.abs(mean), std, 1.0)
