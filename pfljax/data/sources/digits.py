"""The digits of scikit-learn, a real data set that needs no download."""

from __future__ import annotations

import numpy as np

from pfljax.data.examples import Examples


def load_digits(data_dir: str = "") -> Examples:
    """Returns the 1,797 handwritten digits of scikit-learn.

    Args:
      data_dir: Ignored, as the digits come with the package.

    Returns:
      Examples with inputs `[1797, 8, 8, 1]` uint8, with values from 0 to 16.

    >>> load_digits().inputs.shape
    (1797, 8, 8, 1)
    """
    from sklearn import datasets  # slow to import, used by this loader only

    digits = datasets.load_digits()
    return Examples(
        name="digits",
        inputs=digits.images.astype(np.uint8)[..., np.newaxis],
        targets=digits.target.astype(np.int32),
        num_classes=10,
        mean=0.0,
        std=16.0,
    )
