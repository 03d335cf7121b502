"""The distinct answers of the pairs of a data set of the task preference."""

from __future__ import annotations

import numpy as np

from pfljax.data.dataset import FederatedDataset


def numbered(dataset: FederatedDataset) -> tuple[np.ndarray, np.ndarray]:
    """Returns the answers of each pair as numbers, and the standardized features of all answers.

    An answer is recognized by its features: equal ones have one number.

    Args:
      dataset: A data set of the task preference, with features of each answer as inputs.

    Returns:
      `[num_examples, 2]` int32, the preferred answer and the other one of each row, and `[I, d]`
      float32, the features of the `I` distinct answers.

    >>> from pfljax.data import from_arrays
    >>> inputs = np.float32([[[0], [2]], [[2], [4]], [[4], [0]], [[2], [0]]])
    >>> made = from_arrays(inputs, np.zeros(4), [0, 0, 1, 1])
    >>> items, features = numbered(made._replace(mean=2.0, std=2.0))
    >>> sorted(items[:, 0].tolist()), features.ravel().tolist()
    ([0, 1, 1, 2], [-1.0, 0.0, 1.0])
    """
    flat = dataset.inputs.reshape(-1, dataset.inputs.shape[-1])
    features, index = np.unique(flat, axis=0, return_inverse=True)
    standardized = (features - dataset.mean) / dataset.std
    return index.reshape(-1, 2).astype(np.int32), standardized.astype(np.float32)
