"""Means and standard deviations of measured inputs, for tasks to normalize by."""

from __future__ import annotations

import numpy as np


def mean_and_std(inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean and the standard deviation of each feature or channel.

    They are those of the whole pool, test examples included; no target enters them.

    Args:
      inputs: `[n, ..., d]`, without missing values.

    Returns:
      `[d]` float64 each; the standard deviation of a constant feature is given as 1.
    """
    rows = inputs.reshape(-1, inputs.shape[-1])
    mean, std = rows.mean(axis=0, dtype=np.float64), rows.std(axis=0, dtype=np.float64)
    # Rounding leaves a constant a little more than zero.
    return mean, np.where(std > 1e-12 * np.abs(mean), std, 1.0)
