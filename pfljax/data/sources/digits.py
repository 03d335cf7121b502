"""The digits inside scikit-learn: a real data set without a download."""

from __future__ import annotations

import numpy as np

from pfljax.data.examples import Examples


def load_digits(data_dir: str = "") -> Examples:
    """Returns the 1,797 handwritten digits that scikit-learn carries with it.

    Args:
      data_dir: ignored, since the digits come with the package.

    Returns:
      Examples with inputs `[1797, 8, 8, 1]` uint8, their values 0 to 16.

    >>> load_digits().inputs.shape
    (1797, 8, 8, 1)
    """
    from sklearn import datasets  # slow to import, and only this loader needs it

    digits = datasets.load_digits()
    return Examples(
        name="digits",
        inputs=digits.images.astype(np.uint8)[..., np.newaxis],
        targets=digits.target.astype(np.int32),
        num_classes=10,
        mean=0.0,
        std=16.0,
    )
