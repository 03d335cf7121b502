"""The arrays of pfljax's own formats, and their validation.

    name                                     [] str
    inputs                                   [num_examples, ...] numbers, as stored; or
                                             inputs.NAME for each array of a dict
    targets                                  [num_examples] int32 labels, or float32 for a
                                             regression, or [num_examples, T] int32 tokens
    train_offsets, train_sizes               [N] int32, first row and number of training examples
    validation_offsets, validation_sizes     [N] int32, directly after these; sizes may be 0
    test_offsets, test_sizes                 [N] int32, directly after those
    num_classes, num_unseen                  [] int32; the last num_unseen clients never train
    mean, std                                float64, models use (inputs - mean) / std; [], or a
                                             shape that broadcasts to the last axes of an example;
                                             or mean.NAME, std.NAME for numeric arrays of a dict

Optional arrays:

    task                                     [] str, one of dataset.TASKS
    vocabulary                               [columns or 1] int32, sizes of the inputs' id spaces;
                                             or vocabulary.NAME for those arrays that are ids
    target_mean, target_std                  [] float64, the same for targets of a regression
    class_names                              [num_classes] str, the names of the labels
    client_names                             [N] str, the names of the clients

`N` is the number of clients. Integers of other sizes are accepted if their values fit into int32.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pfljax.data import input_arrays, reading, validate, validate_arrays
from pfljax.data.dataset import OF_NUMBERS, TASKS, FederatedDataset, Split
from pfljax.data.formats import refusals
from pfljax.data.input_arrays import map_inputs
from pfljax.errors import UserError

NAMES = ("class_names", "client_names")
OPTIONAL = ("task", "vocabulary", "target_mean", "target_std", *NAMES)
REQUIRED = (
    *("name", "inputs", "targets", "num_classes", "num_unseen", "mean", "std"),
    *(f"{split}_{part}" for split in validate.SPLITS for part in Split._fields),
)
# The keys of inputs, several if inputs are a dict.
BY_NAME = ("inputs", "mean", "std", "vocabulary")
_STATISTICS = ("mean", "std", "target_mean", "target_std")
_PARTS = ("_offsets", "_sizes")


# Keys of other libraries' files, which show that a file was not written by pfljax.
_OTHERS = ("x", "X", "data", "train_data", "images", "features")


def read(file: Path, remedy: str) -> dict[str, np.ndarray]:
    """Returns the arrays of an `.npz` whose keys are listed above.

    Raises:
      UserError: The file is missing or damaged, unpacks to far more than it should, or contains
        anything but plain arrays.
    """

    def is_wanted(member: str) -> bool:
        key = member.removesuffix(".npy")
        return key != member and _base(key) in (*REQUIRED, *OPTIONAL, *_OTHERS)

    arrays: dict[str, np.ndarray] = {}
    for member, content in reading.members(file, is_wanted, remedy):
        try:
            arrays[member.removesuffix(".npy")] = reading.npy(content)
        except ValueError as error:
            raise UserError(
                f"{file} contains {member}, which is truncated, damaged or not a plain array "
                f"({error}): {remedy}."
            ) from error
    return arrays


def _base(key: str) -> str:
    """Returns a key without the name of an array of inputs."""
    base = key.partition(input_arrays.SEPARATOR)[0]
    return base if base in BY_NAME else key


def to_arrays(dataset: FederatedDataset) -> dict[str, Any]:
    """Returns a data set as a dict with the keys above."""
    arrays: dict[str, Any] = {
        "name": np.array(dataset.name, dtype=str),
        "targets": dataset.targets,
        "num_classes": _int32(dataset.num_classes),
        "num_unseen": _int32(dataset.num_unseen),
        "task": np.array(dataset.task, dtype=str),
        "target_mean": np.float64(dataset.target_mean),
        "target_std": np.float64(dataset.target_std),
    }
    for key, form in zip(BY_NAME, (np.asarray, np.float64, np.float64, _int32), strict=True):
        values = input_arrays.to_keys(key, getattr(dataset, key))
        arrays |= {name: form(value) for name, value in values.items()}
    for key in NAMES:
        if getattr(dataset, key):
            arrays[key] = np.array(getattr(dataset, key), dtype=str)
    for split in validate.SPLITS:
        for part, values in getattr(dataset, split)._asdict().items():
            arrays[f"{split}_{part}"] = _int32(values)
    return arrays


def _int32(values: Any) -> np.ndarray:
    """Returns integers as int32 if they fit; `from_arrays` refuses the others."""
    array = np.asarray(values)
    if array.size and array.dtype.kind not in "iu":
        return array
    return array.astype(np.int32) if np.array_equal(array, array.astype(np.int32)) else array


def from_arrays(
    file: Path | str, arrays: Mapping[str, np.ndarray], remedy: str
) -> FederatedDataset:
    """Returns the data set of a dict with the keys above, the inverse of `to_arrays`.

    Args:
      file: The origin of the arrays, for error messages.
      arrays: The arrays, with all required keys; they may come from other programs.
      remedy: The advice that ends the error message.

    Raises:
      UserError: An array is missing, has the wrong shape or dtype, contradicts another one, or
        contains an invalid value; see `validate.federated`.
    """
    missing = sorted(set(REQUIRED) - set(map(_base, arrays)))
    if missing:
        if len(missing) > len(REQUIRED) // 2:
            remedy = "create it with pfljax.data.from_arrays and save_npz"
        raise refusals.faulty(file, f"lacks {', '.join(missing)}", remedy)
    arrays = {"task": np.array("classification"), **arrays}
    if arrays["task"].dtype.kind != "U" or str(arrays["task"]) not in TASKS:
        fault = f"has a task that is not one of {', '.join(TASKS)}"
        raise refusals.faulty(file, fault, remedy)
    for key, array in arrays.items():
        fault = _fault_of_form(key, array, str(arrays["task"]))
        if fault is None and key != _base(key) and _base(key) in arrays:
            fault = f"has both {_base(key)} and {key}"
        if fault:
            raise refusals.faulty(file, fault, remedy)
    whole = {
        key: validate_arrays.whole(file, array, f"number of {key}", remedy=remedy)
        for key, array in arrays.items()
        if _is_whole(key)
    }
    dataset = FederatedDataset(
        name=arrays["name"].item(),
        inputs=input_arrays.from_keys("inputs", arrays),
        targets=arrays["targets"],
        **{
            split: Split(whole[f"{split}_offsets"], whole[f"{split}_sizes"])
            for split in validate.SPLITS
        },
        num_classes=whole["num_classes"].item(),
        mean=map_inputs(_number_or_array, input_arrays.from_keys("mean", arrays)),
        std=map_inputs(_number_or_array, input_arrays.from_keys("std", arrays)),
        num_unseen=whole["num_unseen"].item(),
        task=str(arrays["task"]),
        vocabulary=map_inputs(
            lambda sizes: tuple(np.asarray(sizes).tolist()),
            input_arrays.from_keys("vocabulary", whole, ()),
        ),
        target_mean=float(arrays.get("target_mean", 0.0)),
        target_std=float(arrays.get("target_std", 1.0)),
        **{key: tuple(arrays[key].tolist()) for key in NAMES if key in arrays},
    )
    dataset = validate.federated(dataset, file, remedy)
    fault = _arrangement(dataset)
    if fault:
        raise refusals.faulty(file, fault, remedy)
    return dataset


def _number_or_array(statistic: np.ndarray) -> float | np.ndarray:
    return statistic if statistic.ndim else statistic.item()


def _is_whole(key: str) -> bool:
    return key.endswith(_PARTS) or _base(key) in ("num_classes", "num_unseen", "vocabulary")


def _fault_of_form(key: str, array: np.ndarray, task: str) -> str | None:
    """Returns what is wrong with an array's dtype or number of axes; None if nothing is."""
    base = _base(key)
    if base == "inputs":
        if array.dtype.kind not in "biuf" or array.ndim == 0:
            return f"has {key} of dtype {array.dtype} instead of numbers"
        return None
    if key in ("name", "task", *NAMES):
        fits, expected = array.dtype.kind == "U", "str"
    elif base in _STATISTICS:
        fits, expected = array.dtype.kind in "iuf", "float64"
    elif key == "targets":
        fits = array.dtype.kind in ("iuf" if task in (*OF_NUMBERS, "classification") else "iu")
        expected = "float32" if task in OF_NUMBERS else "int32"
    else:
        fits, expected = array.dtype.kind in "iu", "int32"
    if not fits:
        hint = ""
        if key == "targets" and array.dtype.kind in "USb":
            hint = " (pfljax.data.from_arrays numbers labels of any kind)"
        return f"has {key} of dtype {array.dtype} instead of {expected}{hint}"
    if base in ("mean", "std"):
        return None
    axes = 1 if base in ("targets", "vocabulary", *NAMES) or key.endswith(_PARTS) else 0
    if key == "targets" and task == "next_token":
        axes = array.ndim if array.ndim in (1, 2) else 2
    if array.ndim != axes:
        return f"has {key} with {array.ndim} axes instead of {axes}"
    return None


def _arrangement(dataset: FederatedDataset) -> str | None:
    """Returns how the order of the clients' rows is wrong; None if it is right."""
    train, validation, test = (
        Split(*(array.astype(np.int64) for array in getattr(dataset, name)))
        for name in validate.SPLITS
    )
    gaps = (train.offsets + train.sizes != validation.offsets) | (
        validation.offsets + validation.sizes != test.offsets
    )
    if gaps.any():
        client = int(np.argmax(gaps))
        return f"does not store the rows of client {client} consecutively"
    by_row = np.argsort(train.offsets)
    if np.any((test.offsets + test.sizes)[by_row][:-1] > train.offsets[by_row][1:]):
        return "assigns the same rows to two clients"
    for key, count in (("class_names", dataset.num_classes), ("client_names", dataset.num_clients)):
        if len(getattr(dataset, key)) not in (0, count):
            return f"has {len(getattr(dataset, key))} {key} instead of {count}"
    return None
