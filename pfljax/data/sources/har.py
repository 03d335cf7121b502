"""UCI HAR: six activities measured by a phone at the waist; the 30 subjects are the clients."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pfljax.data import checks
from pfljax.data.examples import Examples
from pfljax.data.sources import files
from pfljax.data.sources.scale import mean_and_std
from pfljax.errors import UserError

_FOLDERS = ("UCI HAR Dataset", "uci-har", "uci_har", "har")
_CHANNELS = [f"{kind}_{axis}" for kind in ("body_acc", "body_gyro", "total_acc") for axis in "xyz"]
_TIMES = 128
_CLASSES = 6
# Windows overlap by half: with a gap of one window, two parts share no measurement.
_GAP = 1


def load_har(data_dir: str = "", *, inputs: str = "inertial") -> Examples:
    """Returns windows of 2.56 s at 50 Hz, owned by their subjects, in order of time.

    Classes: walking, upstairs, downstairs, sitting, standing, laying.

    Args:
      data_dir: A directory with `train` and `test` of the original distribution, or
        `inertial_f16.npy`, `inertial_labels.npy` and `inertial_subjects.npy` (the first `[9, n,
        128]` or `[n, 128, 9]`; plain or compressed as .xz), or with a directory `UCI HAR Dataset`,
        `uci-har` or `har` of them.
      inputs: `inertial` for the signals, or `features` for the 561 features derived from them; the
        plain arrays of the features are `features561_f16.npy`, `_labels.npy` and `_subjects.npy`,
        the first `[561, n]` or `[n, 561]`.

    Returns:
      Examples with inputs `[n, 128, 9]`, times by channels (acceleration of the body, rotation,
      total acceleration, each x, y, z), or `[n, 561]`; a `time_gap` of 1, since windows overlap.

    Raises:
      UserError: The files are missing or damaged.

    References:
      Anguita, Ghio, Oneto, Parra, Reyes-Ortiz, "A Public Domain Dataset for Human Activity
      Recognition Using Smartphones", 2013.
    """
    checks.choice("data.options.har.inputs", inputs, ("inertial", "features"))
    searched = files.directories(data_dir, _FOLDERS)
    form = "inertial" if inputs == "inertial" else "features561"
    arrays = [f"{form}_f16.npy", f"{form}_labels.npy", f"{form}_subjects.npy"]
    official = _official_files(inputs)
    if paths := files.find(searched, [name for part in official for name in part]):
        width = len(paths) // 2
        parts = [_read_official(paths[start : start + width]) for start in (0, width)]
        values, labels, subjects = (np.concatenate(each) for each in zip(*parts, strict=True))
    elif paths := files.find(searched, arrays):
        values, labels, subjects = _read_arrays(paths, inputs)
    else:
        raise files.absent(
            "har",
            searched,
            "unpack `UCI HAR Dataset.zip` of the UCI repository there, or put "
            f"{', '.join(arrays)} there",
        )
    mean, std = mean_and_std(values)
    return Examples(
        name="har",
        inputs=values,
        targets=labels,
        num_classes=_CLASSES,
        mean=mean,
        std=std,
        owners=subjects,
        time_gap=_GAP,
    )


def _official_files(inputs: str) -> list[list[str]]:
    """Returns relative file names, labels and subjects first, for train and for test."""
    parts = []
    for part in ("train", "test"):
        names = [f"{part}/y_{part}.txt", f"{part}/subject_{part}.txt"]
        if inputs == "inertial":
            names += [f"{part}/Inertial Signals/{name}_{part}.txt" for name in _CHANNELS]
        else:
            names.append(f"{part}/X_{part}.txt")
        parts.append(names)
    return parts


def _read_official(paths: list[Path]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reads one part: labels from 1, subjects, then a file per channel or one of features."""
    (labels, subjects), signals = (
        [_read_numbers(path, 1)[:, 0] for path in paths[:2]],
        [_read_numbers(path, _TIMES if len(paths) > 3 else 561) for path in paths[2:]],
    )
    for path, each in zip(paths[1:], [subjects, *signals], strict=True):
        files.same_length(labels=(paths[0], labels), rows=(path, each))
    labels = files.labels_below(paths[0], labels - 1, _CLASSES)
    values = np.stack(signals, axis=-1) if len(signals) > 1 else signals[0]
    return values, labels, files.owners(paths[1], subjects)


def _read_numbers(path: Path, columns: int) -> np.ndarray:
    try:
        values = files.table(files.read_text(path))
    except ValueError as error:
        raise UserError(f"{path} is not a table of numbers: {files.FETCH_AGAIN}.") from error
    if values.shape[1:] != (columns,):
        raise UserError(
            f"{path} has rows of {values.shape[1]} numbers where {columns} are expected: "
            f"{files.FETCH_AGAIN}."
        )
    return files.numbers(path, values, "measurements").astype(np.float32)


def _read_arrays(paths: list[Path], inputs: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if inputs == "inertial":
        channels = len(_CHANNELS)
        shapes = (channels, None, _TIMES), (None, _TIMES, channels)
        values = files.read_array(paths[0], *shapes)
        if values.shape[2] == _TIMES:  # stored channel by channel
            values = values.transpose(1, 2, 0)
    else:
        values = files.read_array(paths[0], (561, None), (None, 561))
        if len(values) == 561:
            values = values.T
    labels, subjects = (files.read_array(path, (None,)) for path in paths[1:])
    for path, each in zip(paths[1:], (labels, subjects), strict=True):
        files.same_length(windows=(paths[0], values), entries=(path, each))
    labels = files.labels_below(paths[1], labels, _CLASSES)
    return np.ascontiguousarray(values), labels, files.owners(paths[2], subjects)
