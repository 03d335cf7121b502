"""PAMAP2: twelve activities measured at wrist, chest and ankle; nine subjects are the clients."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pfljax.data import checks, validate_arrays
from pfljax.data.examples import Examples
from pfljax.data.sources import files
from pfljax.data.sources.scale import mean_and_std
from pfljax.errors import UserError

_SUBJECTS = range(101, 110)
_COLUMNS = 54
# Lying, sitting, standing, walking, running, cycling, Nordic walking, stairs up and down, vacuum
# cleaning, ironing, rope jumping; 0 is transient.
ACTIVITIES = (1, 2, 3, 4, 5, 6, 7, 12, 13, 16, 17, 24)
# The columns used of each sensor's 17: acceleration up to 16 g, rotation, magnetic field.
_CHANNELS = [
    start + offset
    for start in (3, 20, 37)
    for offset in (*range(1, 4), *range(7, 10), *range(10, 13))
]


def load_pamap2(data_dir: str = "", *, length: int = 256) -> Examples:
    """Returns windows of 2.56 s at 100 Hz, owned by their subjects, in order of time.

    Args:
      data_dir: A directory with `subject101.dat` to `subject109.dat` of the directory `Protocol`,
        or with that directory, or with a directory `PAMAP2_Dataset/Protocol`, `PAMAP2_Dataset` or
        `pamap2` of them.
      length: Number of measurements of a window, `T`; windows overlap by half and never mix
        activities.

    Returns:
      Examples with inputs `[n, T, 27]` float32 in 12 classes. Missing measurements are
      interpolated in time. `time_gap` is 1, since windows overlap.

    Raises:
      UserError: The files are missing or damaged.

    References:
      Reiss, Stricker, "Introducing a New Benchmarked Dataset for Activity Monitoring", 2012,
      https://doi.org/10.1109/ISWC.2012.13.
    """
    checks.whole("data.options.pamap2.length", length, 2, 100_000)
    folders = ("PAMAP2_Dataset/Protocol", "Protocol", "PAMAP2_Dataset", "pamap2")
    searched = files.directories(data_dir, folders)
    paths = files.find(searched, [f"subject{subject}.dat" for subject in _SUBJECTS])
    if paths is None:
        raise files.absent("pamap2", searched, "put subject101.dat to subject109.dat there")
    inputs, labels, owners = [], [], []
    for subject, path in zip(_SUBJECTS, paths, strict=True):
        activities, signals = _read(path)
        for start, end in _runs(activities):
            if activities[start] not in ACTIVITIES:
                continue
            for first in range(start, end - length + 1, length // 2):
                inputs.append(signals[first : first + length])
                labels.append(ACTIVITIES.index(activities[start]))
                owners.append(subject)
    if not inputs:
        raise UserError(
            f"{paths[0].parent} has no activity of {length} measurements: use a smaller length."
        )
    windows = np.stack(inputs)
    mean, std = mean_and_std(windows)
    return Examples(
        name="pamap2",
        inputs=windows,
        targets=np.array(labels, np.int32),
        num_classes=len(ACTIVITIES),
        mean=mean,
        std=std,
        owners=np.array(owners, np.int32),
        time_gap=1,
    )


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns activities `[t]` and signals `[t, 27]` float32 without gaps."""
    try:
        table = files.table(files.read_text(path))
        if table.shape[1] != _COLUMNS:
            raise ValueError(f"{table.shape[1]} columns")
    except ValueError as error:
        raise UserError(
            f"{path} is truncated or not a table of {_COLUMNS} columns ({error}): "
            f"{files.FETCH_AGAIN}."
        ) from error
    signals = table[:, _CHANNELS]
    times = np.arange(len(table))
    for channel in signals.T:
        lost = np.isnan(channel)
        if lost.all():
            channel[:] = 0
        elif lost.any():
            channel[lost] = np.interp(times[lost], times[~lost], channel[~lost])
    activities = validate_arrays.whole(
        path, table[:, 1], "activity", least=0, remedy=files.FETCH_AGAIN
    )
    return activities, files.numbers(path, signals, "signals").astype(np.float32)


def _runs(values: np.ndarray) -> list[tuple[int, int]]:
    """Returns start and end of each run of equal values.

    >>> _runs(np.array([4, 4, 0, 4]))
    [(0, 2), (2, 3), (3, 4)]
    """
    edges = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
    return list(zip(edges[:-1], edges[1:], strict=True))
