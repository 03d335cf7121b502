"""Tables of text: WISDM's activities and Parkinson's telemonitoring."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pfljax.data import checks, validate_arrays
from pfljax.data.examples import Examples
from pfljax.data.sources import files
from pfljax.data.sources.scale import mean_and_std
from pfljax.errors import UserError

_WISDM = "WISDM_ar_v1.1_transformed.arff"
_WISDM_COLUMNS = 46  # number of the window, user, 43 features, activity
ACTIVITIES = ("Walking", "Jogging", "Upstairs", "Downstairs", "Sitting", "Standing")
_PARKINSONS = "parkinsons_updrs.data"
_PARKINSONS_START = "subject#,age,sex,test_time,motor_UPDRS,total_UPDRS,"


def load_wisdm(data_dir: str = "") -> Examples:
    """Returns statistics of 10 s of acceleration, owned by 36 users, in six activities.

    Args:
      data_dir: A directory with `WISDM_ar_v1.1_transformed.arff`, or with a directory `wisdm`,
        `WISDM_ar_v1.1` or `tabular` of them.

    Returns:
      Examples with inputs `[5418, 43]` float32; a missing value is replaced by its column's mean.
      Each user's windows are in the order of their numbers, and the last of each activity are
      tested, because neighbouring ones belong to the same walk.

    Raises:
      UserError: The file is missing or damaged.

    References:
      Kwapisz, Weiss, Moore, "Activity Recognition using Cell Phone Accelerometers", 2010,
      https://doi.org/10.1145/1964897.1964918.
    """
    path = _find("wisdm", data_dir, ("wisdm", "WISDM_ar_v1.1", "tabular"), _WISDM)
    _, _, body = files.read_text(path).lower().partition("@data")
    rows = [line.split(",") for line in body.split()]
    names = {name.lower(): number for number, name in enumerate(ACTIVITIES)}
    try:
        if not rows or any(len(row) != _WISDM_COLUMNS for row in rows):
            raise ValueError("rows of different lengths")
        labels = np.array([names[row[-1]] for row in rows], np.int32)
        if "_" in body:  # which Python accepts in numbers
            raise ValueError("an underscore")
        missing = np.array([[cell == "?" for cell in row[:-1]] for row in rows])
        if missing[:, :2].any():
            raise ValueError("a window without number or user")
        table = np.array([[float(cell.replace("?", "0")) for cell in row[:-1]] for row in rows])
    except (ValueError, KeyError) as error:
        raise UserError(
            f"{path} is damaged or not of {_WISDM_COLUMNS} columns that end in an activity "
            f"({error}): {files.FETCH_AGAIN}."
        ) from error
    about = {"remedy": files.FETCH_AGAIN, "row_name": files.row_of_table}
    validate_arrays.finite(path, table, **about)
    users = validate_arrays.whole(path, table[:, 1], "user", least=0, **about)
    validate_arrays.whole(path, table[:, 0], "number of a window", least=0, **about)
    order = np.lexsort((table[:, 0], users))
    inputs, missing = table[order, 2:], missing[order, 2:]
    means = inputs.sum(axis=0, where=~missing) / np.maximum((~missing).sum(axis=0), 1)
    inputs = np.where(missing, means, inputs).astype(np.float32)
    mean, std = mean_and_std(inputs)
    return Examples(
        name="wisdm",
        inputs=inputs,
        targets=labels[order],
        num_classes=len(ACTIVITIES),
        mean=mean,
        std=std,
        owners=users[order],
        time_gap=0,
    )


def load_parkinsons(data_dir: str = "", *, target: str = "total") -> Examples:
    """Returns voice measurements at home and the severity of Parkinson's, owned by 42 subjects.

    Args:
      data_dir: A directory with `parkinsons_updrs.data`, or with a directory `parkinsons` or
        `tabular` of them.
      target: `total` for the total UPDRS score, or `motor` for the motor score.

    Returns:
      Examples for a regression: inputs `[5875, 19]` float32, age, sex, day and 16 measures of the
      voice; targets `[5875]` float32. Each subject's recordings are in the order of days and the
      last are tested, because those of one day are similar and the scores between two recordings
      were interpolated.

    Raises:
      UserError: The file is missing or damaged.

    References:
      Tsanas, Little, McSharry, Ramig, "Accurate Telemonitoring of Parkinson's Disease Progression
      by Noninvasive Speech Tests", 2010, https://doi.org/10.1109/TBME.2009.2036000.
    """
    checks.choice("data.options.parkinsons.target", target, ("total", "motor"))
    path = _find("parkinsons", data_dir, ("parkinsons", "tabular"), _PARKINSONS)
    header, _, body = files.read_text(path).partition("\n")
    try:
        if not header.startswith(_PARKINSONS_START):
            raise ValueError("a wrong header")
        table = files.table(body, ",")
        if table.shape[1] != 22:
            raise ValueError(f"{table.shape[1]} columns")
    except ValueError as error:
        raise UserError(
            f"{path} is damaged or not the table of 22 columns ({error}): {files.FETCH_AGAIN}."
        ) from error
    columns = [column.strip() for column in header.split(",")]
    about = {"remedy": files.FETCH_AGAIN, "row_name": files.row_of_table}
    validate_arrays.finite(path, table, columns=columns, **about)
    subjects = validate_arrays.whole(path, table[:, 0], "subject", least=0, **about)
    order = np.lexsort((table[:, 3], subjects))
    table = table[order]
    scores = table[:, 4 if target == "motor" else 5].astype(np.float32)
    inputs = np.delete(table, (0, 4, 5), axis=1).astype(np.float32)
    mean, std = mean_and_std(inputs)
    return Examples(
        name="parkinsons",
        inputs=inputs,
        targets=scores,
        num_classes=0,
        mean=mean,
        std=std,
        task="regression",
        owners=subjects[order],
        time_gap=0,
        target_mean=float(scores.mean(dtype=np.float64)),
        target_std=float(scores.std(dtype=np.float64)),
    )


def _find(name: str, data_dir: str, folders: tuple[str, ...], file: str) -> Path:
    searched = files.directories(data_dir, folders)
    paths = files.find(searched, [file])
    if paths is None:
        raise files.absent(name, searched, f"put {file} there")
    return paths[0]
