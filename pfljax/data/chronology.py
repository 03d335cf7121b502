"""Splits in time: what comes last is tested, and nothing that overlaps it is trained on."""

from __future__ import annotations

import numpy as np


def last_share(
    labels: np.ndarray, fraction: float, gap: int, *, never_empty: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Chooses the earlier and the later examples of every label.

    Recordings of activities come in blocks, one label after the other: the last share of all of
    them would be one or two labels. So each label is cut by itself.

    Args:
      labels: `[n]` integers, in the order of time.
      fraction: how much of each label is later; rounded, but never all of it.
      gap: how many examples of each label are left out at the cut.
      never_empty: cut the whole at once where cutting each label leaves nothing later.

    Returns:
      Positions in `[0, n)` of the earlier and of the later examples, ascending.

    >>> earlier, later = last_share(np.array([0, 0, 0, 0, 1, 1, 1, 1]), 0.25, gap=1)
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
    """Cuts a client's examples into training, then validation, then test part.

    Args:
      labels: `[n]` integers, in the order of time.
      test_fraction: of all its examples, in (0, 1).
      validation_fraction: of the others, in [0, 1).
      gap: how many examples of each label are left out between two parts.

    Returns:
      Positions in `[0, n)` of each part, ascending; a test part of at least one where `n` allows.
    """
    earlier, test = last_share(labels, test_fraction, gap, never_empty=True)
    train, validation = last_share(labels[earlier], validation_fraction, gap)
    return earlier[train], earlier[validation], test


def _joined(pieces: list[np.ndarray]) -> np.ndarray:
    return np.sort(np.concatenate([np.empty(0, np.int64), *pieces]))
