"""The keys of pfljax's own formats, and what they must hold.

    name                                     [] str
    inputs                                   [num_examples, ...] any numbers, as stored; or
                                             inputs.NAME for each array of inputs that are a dict
    targets                                  [num_examples] int32 labels, or float32 for a
                                             regression, or [num_examples, T] int32 tokens
    train_offsets, train_sizes               [N] int32, the client's first training row, how many
    validation_offsets, validation_sizes     [N] int32, right after them; a size may be 0
    test_offsets, test_sizes                 [N] int32, right after those
    num_classes, num_unseen                  [] int32; the last num_unseen clients never train
    mean, std                                float64, (inputs - mean) / std is what models see;
                                             [], or what fits the last axes of an example; or
                                             mean.NAME, std.NAME for the measured arrays of a dict

and perhaps these, which a classification of measured inputs does without:

    task                                     [] str, one of dataset.TASKS
    vocabulary                               [columns or 1] int32, sizes of the inputs' id spaces;
                                             or vocabulary.NAME for those arrays that are ids
    target_mean, target_std                  [] float64, the same for targets of a regression
    class_names                              [num_classes] str, what the labels mean
    client_names                             [N] str, how the clients are called

`N` are the clients. Integers of other sizes are read as well where int32 holds their values.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pfljax.data import input_arrays, reading, validate
from pfljax.data.dataset import TASKS, FederatedDataset, Split
from pfljax.data.formats import refusals
from pfljax.data.input_arrays import map_inputs
from pfljax.errors import UserError

NAMES = ("class_names", "client_names")
OPTIONAL = ("task", "vocabulary", "target_mean", "target_std", *NAMES)
REQUIRED = (
    *("name", "inputs", "targets", "num_classes", "num_unseen", "mean", "std"),
    *(f"{split}_{part}" for split in validate.SPLITS for part in Split._fields),
)
# Those of inputs, which stand under several keys where inputs are a dict.
BY_NAME = ("inputs", "mean", "std", "vocabulary")
_STATISTICS = ("mean", "std", "target_mean", "target_std")
_PARTS = ("_offsets", "_sizes")


# The keys of somebody else's arrays, which tell that a file was never written by pfljax.
_OTHERS = ("x", "X", "data", "train_data", "images", "features")


def read(file: Path, remedy: str) -> dict[str, np.ndarray]:
    """Returns those arrays of an `.npz` whose keys stand above.

    Raises:
      UserError: the file is absent or damaged, unpacks to far more than it should, or holds other
        things than plain arrays.
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
                f"{file} holds {member}, which is truncated, damaged or no plain array "
                f"({error}): {remedy}."
            ) from error
    return arrays


def _base(key: str) -> str:
    """Returns a key without the name of an array of inputs."""
    base = key.partition(input_arrays.SEPARATOR)[0]
    return base if base in BY_NAME else key


def to_arrays(dataset: FederatedDataset) -> dict[str, Any]:
    """Returns a data set by the keys above."""
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
    """Returns integers as int32 where it holds them; `from_arrays` refuses the others."""
    array = np.asarray(values)
    if array.size and array.dtype.kind not in "iu":
        return array
    return array.astype(np.int32) if np.array_equal(array, array.astype(np.int32)) else array


def from_arrays(
    file: Path | str, arrays: Mapping[str, np.ndarray], remedy: str
) -> FederatedDataset:
    """The inverse of `to_arrays`, for arrays that somebody else may have written.

    Args:
      file: where they come from, for messages.
      arrays: all the required keys.
      remedy: what to do about a fault.

    Raises:
      UserError: something is missing, has another form, contradicts another part, or holds a value
        that makes no sense; see `validate.federated`.
    """
    missing = sorted(set(REQUIRED) - set(map(_base, arrays)))
    if missing:
        if len(missing) > len(REQUIRED) // 2:
            remedy = "make it of inputs, labels and clients with pfljax.data.from_arrays, save_npz"
        raise refusals.faulty(file, f"lacks {', '.join(missing)}", remedy)
    arrays = {"task": np.array("classification"), **arrays}
    if arrays["task"].dtype.kind != "U" or str(arrays["task"]) not in TASKS:
        fault = f"has a task that is none of {', '.join(TASKS)}"
        raise refusals.faulty(file, fault, remedy)
    for key, array in arrays.items():
        fault = _fault_of_form(key, array, str(arrays["task"]))
        if fault is None and key != _base(key) and _base(key) in arrays:
            fault = f"has both {_base(key)} and {key}"
        if fault:
            raise refusals.faulty(file, fault, remedy)
    whole = {
        key: validate.whole(file, array, f"number of {key}", remedy=remedy)
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
    """Returns what is wrong with an array's dtype or number of axes; None for nothing."""
    base = _base(key)
    if base == "inputs":
        if array.dtype.kind not in "biuf" or array.ndim == 0:
            return f"has {key} of dtype {array.dtype} where numbers are expected"
        return None
    if key in ("name", "task", *NAMES):
        fits, expected = array.dtype.kind == "U", "str"
    elif base in _STATISTICS:
        fits, expected = array.dtype.kind in "iuf", "float64"
    elif key == "targets":
        fits = array.dtype.kind in ("iuf" if task in ("regression", "classification") else "iu")
        expected = "float32" if task == "regression" else "int32"
    else:
        fits, expected = array.dtype.kind in "iu", "int32"
    if not fits:
        hint = ""
        if key == "targets" and array.dtype.kind in "USb":
            hint = " (pfljax.data.from_arrays numbers labels of any kind)"
        return f"has {key} of dtype {array.dtype} where {expected} is expected{hint}"
    if base in ("mean", "std"):
        return None
    axes = 1 if base in ("targets", "vocabulary", *NAMES) or key.endswith(_PARTS) else 0
    if key == "targets" and task == "next_token":
        axes = array.ndim if array.ndim in (1, 2) else 2
    if array.ndim != axes:
        return f"has {key} with {array.ndim} axes where {axes} are expected"
    return None


def _arrangement(dataset: FederatedDataset) -> str | None:
    """Returns how the clients' rows lie otherwise than one client after the other."""
    train, validation, test = (
        Split(*(array.astype(np.int64) for array in getattr(dataset, name)))
        for name in validate.SPLITS
    )
    apart = (train.offsets + train.sizes != validation.offsets) | (
        validation.offsets + validation.sizes != test.offsets
    )
    if apart.any():
        client = int(np.argmax(apart))
        return f"does not hold the rows of client {client} one after the other"
    by_row = np.argsort(train.offsets)
    if np.any((test.offsets + test.sizes)[by_row][:-1] > train.offsets[by_row][1:]):
        return "gives the same rows to two clients"
    for key, count in (("class_names", dataset.num_classes), ("client_names", dataset.num_clients)):
        if len(getattr(dataset, key)) not in (0, count):
            return f"has {len(getattr(dataset, key))} {key} where {count} are expected"
    return None
