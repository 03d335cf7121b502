"""Splits in time: the last examples are tested, and no overlapping ones are trained on."""

from __future__ import annotations

import numpy as np


def last_fraction(
    labels: np.ndarray, fraction: float, gap: int, *, never_empty: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Splits examples into earlier and later ones, separately for every label.

    Recordings of activities come in blocks of one label each: the last part of all examples would
    contain only one or two labels. Therefore each label is split separately.

    Args:
      labels: `[n]` integers, the labels in order of time.
      fraction: The fraction of each label that is later; rounded, but less than all of it.
      gap: Number of examples of each label that are dropped between the parts.
      never_empty: Whether to split all labels together if splitting each leaves no later example.

    Returns:
      The positions in `[0, n)` of the earlier and of the later examples, ascending.

    >>> earlier, later = last_fraction(np.array([0, 0, 0, 0, 1, 1, 1, 1]), 0.25, gap=1)
    >>> earlier.tolist(), later.tolist()
    ([0, 1, 4, 5], [3, 7])
    """
    earlier, later = [], []
    for label in np.unique(labels):
        positions = np.flatnonzero(labels == label)
        count = round(fraction * len(positions))
        if count == 0 or count + gap >= len(positions):
            earlier.append(positions)
            continue
        earlier.append(positions[: -count - gap])
        later.append(positions[-count:])
    if never_empty and not later and len(labels) > 1 + gap:
        return np.arange(len(labels) - 1 - gap), np.array([len(labels) - 1])
    return _joined(earlier), _joined(later)


def split_in_time(
    labels: np.ndarray, test_fraction: float, validation_fraction: float, gap: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Splits a client's examples in time into training, validation and test examples.

    Args:
      labels: `[n]` integers, the labels in order of time.
      test_fraction: The fraction of test examples, in (0, 1).
      validation_fraction: The fraction of validation examples among the others, in [0, 1).
      gap: Number of examples of each label that are dropped between two parts.

    Returns:
      The positions in `[0, n)` of each part, ascending; at least one test example if `n` allows.
    """
    earlier, test = last_fraction(labels, test_fraction, gap, never_empty=True)
    train, validation = last_fraction(labels[earlier], validation_fraction, gap)
    return earlier[train], earlier[validation], test


def _joined(pieces: list[np.ndarray]) -> np.ndarray:
    return np.sort(np.concatenate([np.empty(0, np.int64), *pieces]))
