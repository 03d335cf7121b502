"""Data sets distributed as MATLAB files: Office-Caltech-10, school and landmine."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pfljax.data import validate_arrays
from pfljax.data.examples import Examples
from pfljax.data.sources import files
from pfljax.data.sources.scale import mean_and_std
from pfljax.errors import UserError

_DOMAINS = ("amazon", "caltech", "dslr", "webcam")
_WORDS = 800


def load_office_caltech(data_dir: str = "") -> Examples:
    """Returns Office-Caltech-10 as counts of 800 visual words (SURF); the domains are the clients.

    Classes: backpack, bike, calculator, headphones, keyboard, laptop, monitor, mouse, mug,
    projector.

    Args:
      data_dir: A directory with `DOMAIN_SURF_L10.mat` for amazon, caltech, dslr and webcam, or with
        a directory `office-caltech10` or `office_caltech` of them.

    Returns:
      Examples with inputs `[2533, 800]` uint8 in 10 classes.

    Raises:
      UserError: The files are missing or damaged.

    References:
      Gong, Shi, Sha, Grauman, "Geodesic Flow Kernel for Unsupervised Domain Adaptation", 2012,
      https://doi.org/10.1109/CVPR.2012.6247911.
    """
    names = [f"{domain}_SURF_L10.mat" for domain in _DOMAINS]
    paths = _find("office_caltech", data_dir, ("office-caltech10", "office_caltech"), names)
    inputs, labels, owners = [], [], []
    for domain, path in enumerate(paths):
        counts, classes = files.read_matlab(path, "fts", "labels")
        if counts.ndim != 2 or counts.shape[1] != _WORDS or len(classes.ravel()) != len(counts):
            raise UserError(
                f"{path} has features of shape {counts.shape} and labels of shape "
                f"{classes.shape} instead of [n, {_WORDS}] and [n, 1]: {files.FETCH_AGAIN}."
            )
        inputs.append(validate_arrays.pixels(path, counts, remedy=files.FETCH_AGAIN))
        classes = files.numbers(path, classes, "labels").ravel() - 1.0
        labels.append(files.labels_below(path, classes, 10))
        owners.append(np.full(len(counts), domain, np.int32))
    return _examples("office_caltech", inputs, np.concatenate(labels), owners, num_classes=10)


def load_school(data_dir: str = "") -> Examples:
    """Returns exam scores of pupils in London, 1985 to 1987; the 139 schools are the clients.

    Args:
      data_dir: A directory with `school.mat`, or with a directory `school` or `tabular` of them.

    Returns:
      Examples for a regression: inputs `[15362, 28]` uint8 of school and pupil, the last one
      constant; targets `[15362]` float32 scores.

    Raises:
      UserError: The file is missing or damaged.

    References:
      Goldstein, "Multilevel Modelling of Survey Data", 1991.
      Argyriou, Evgeniou, Pontil, "Convex Multi-task Feature Learning", 2008,
      https://doi.org/10.1007/s10994-007-5040-8.
    """
    (path,) = _find("school", data_dir, ("school", "tabular"), ["school.mat"])
    inputs, scores, owners = _read_tasks(path, "X", "Y")
    targets = np.concatenate(scores).astype(np.float32)
    examples = _examples("school", inputs, targets, owners, num_classes=0)
    return examples._replace(
        task="regression",
        target_mean=float(targets.mean(dtype=np.float64)),
        target_std=float(targets.std(dtype=np.float64)),
    )


def load_landmine(data_dir: str = "") -> Examples:
    """Returns radar features of spots in 29 fields, the clients; class 1, 6 %, is a mine.

    Args:
      data_dir: A directory with `LandmineData.mat`, or with a directory `landmine` or `tabular` of
        them.

    Returns:
      Examples with inputs `[14820, 9]` float32 in 2 classes.

    Raises:
      UserError: The file is missing or damaged.

    References:
      Xue, Liao, Carin, Krishnapuram, "Multi-Task Learning for Classification with Dirichlet Process
      Priors", 2007, https://www.jmlr.org/papers/v8/xue07a.html.
    """
    (path,) = _find("landmine", data_dir, ("landmine", "tabular"), ["LandmineData.mat"])
    inputs, labels, owners = _read_tasks(path, "feature", "label")
    inputs = [each.astype(np.float32) for each in inputs]
    targets = files.labels_below(path, np.concatenate(labels), 2)
    return _examples("landmine", inputs, targets, owners, num_classes=2)


def _examples(
    name: str,
    inputs: list[np.ndarray],
    targets: np.ndarray,
    owners: list[np.ndarray],
    num_classes: int,
) -> Examples:
    values = np.concatenate(inputs)
    mean, std = mean_and_std(values)
    owned = np.concatenate(owners)
    return Examples(name, values, targets, num_classes, mean=mean, std=std, owners=owned)


def _find(name: str, data_dir: str, folders: tuple[str, ...], names: list[str]) -> list[Path]:
    searched = files.directories(data_dir, folders)
    paths = files.find(searched, names)
    if paths is None:
        raise files.absent(name, searched, f"put {', '.join(names)} there")
    return paths


def _read_tasks(
    path: Path, inputs_key: str, targets_key: str
) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Reads cell arrays with a matrix and a column per task: inputs, flat targets, owners."""
    inputs, targets = (
        list(cells.ravel()) for cells in files.read_matlab(path, inputs_key, targets_key)
    )
    targets = [np.ravel(each) if isinstance(each, np.ndarray) else None for each in targets]
    cells = [*inputs, *targets]
    if not cells or not all(isinstance(each, np.ndarray) for each in cells):
        raise UserError(
            f"{path} has {inputs_key} and {targets_key} that are not cells of matrices: "
            f"{files.FETCH_AGAIN}."
        )
    fits = len(inputs) == len(targets) and all(
        matrix.ndim == 2 and matrix.shape[1] == inputs[0].shape[1] and len(matrix) == len(column)
        for matrix, column in zip(inputs, targets, strict=False)
    )
    if not fits:
        raise UserError(
            f"{path} has {inputs_key} and {targets_key} that do not match: {files.FETCH_AGAIN}."
        )
    for task, (matrix, column) in enumerate(zip(inputs, targets, strict=True)):
        for key, each in ((inputs_key, matrix), (targets_key, column)):
            files.numbers(f"{path}, in cell {task} of {key},", each, "values")
    owners = [np.full(len(column), task, np.int32) for task, column in enumerate(targets)]
    return inputs, targets, owners
