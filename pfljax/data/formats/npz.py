"""pfljax's own file of a federated data set.

It has these keys, all of them plain arrays; `N` clients, counts are int32:

    name                                     [] str
    inputs                                   [num_examples, ...] any numbers, as stored
    targets                                  [num_examples] int32 labels, or float32 for a
                                             regression, or [num_examples, T] int32 tokens
    train_offsets, train_sizes               [N] int32, the client's first training row, how many
    validation_offsets, validation_sizes     [N] int32, right after them; a size may be 0
    test_offsets, test_sizes                 [N] int32, right after those
    num_classes, num_unseen                  [] int32; the last num_unseen clients never train
    mean, std                                float64, (inputs - mean) / std is what models see;
                                             [], or what fits the last axes of an example

and perhaps these, which a classification of measured inputs does without:

    task                                     [] str, one of dataset.TASKS
    vocabulary                               [columns or 1] int32, sizes of the inputs' id spaces
    target_mean, target_std                  [] float64, the same for targets of a regression
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from pfljax.data.dataset import TASKS, FederatedDataset, Split
from pfljax.data.formats import refusals
from pfljax.errors import UserError

_SPLITS = ("train", "validation", "test")
_STATISTICS = ("mean", "std", "target_mean", "target_std")
_OPTIONAL = ("task", "vocabulary", "target_mean", "target_std")
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError)


def save_npz(path: str, dataset: FederatedDataset) -> None:
    """Writes a federated data set as one compressed file that `load_npz` reads back exactly.

    Args:
      path: the file to write, its name used as it is; an existing one is replaced.
      dataset: what to write.

    Raises:
      UserError: the file cannot be written.
    """
    arrays: dict[str, Any] = {
        "name": np.array(dataset.name, dtype=str),
        "inputs": dataset.inputs,
        "targets": dataset.targets,
        "num_classes": np.int32(dataset.num_classes),
        "num_unseen": np.int32(dataset.num_unseen),
        "mean": np.float64(dataset.mean),
        "std": np.float64(dataset.std),
        "task": np.array(dataset.task, dtype=str),
        "vocabulary": np.array(dataset.vocabulary, np.int32),
        "target_mean": np.float64(dataset.target_mean),
        "target_std": np.float64(dataset.target_std),
    }
    for split in _SPLITS:
        arrays[f"{split}_offsets"], arrays[f"{split}_sizes"] = getattr(dataset, split)
    try:
        # An open file keeps NumPy from adding a suffix to the name the user gave.
        with refusals.given(path, "a file to write").open("wb") as file:
            np.savez_compressed(file, **arrays)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}): choose a file in an existing directory."
        ) from error


def load_npz(path: str) -> FederatedDataset:
    """Returns the federated data set in a file of pfljax's own layout.

    Args:
      path: a file that `save_npz` wrote, or another of the same keys.

    Returns:
      The federated data set.

    Raises:
      UserError: the file is absent, damaged or inconsistent.
    """
    file = refusals.given(path, "an .npz file in pfljax's layout")
    keys = ["name", "inputs", "targets", "num_classes", "num_unseen", "mean", "std"]
    keys += [f"{split}_{part}" for split in _SPLITS for part in Split._fields]
    try:
        with zipfile.ZipFile(file) as archive:
            present = {name.removesuffix(".npy") for name in archive.namelist()}
            missing = set(keys) - present
            if missing:
                raise _refusal(file, f"lacks {', '.join(sorted(missing))}")
        with np.load(file, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in keys + sorted(present & set(_OPTIONAL))}
    except OSError as error:
        raise refusals.unreadable(file, error) from error
    except _DAMAGED as error:
        raise UserError(
            f"{file} is truncated, damaged or no .npz of plain arrays: write it again with "
            "save_npz."
        ) from error
    arrays.setdefault("task", np.array("classification"))
    if arrays["task"].dtype.kind != "U" or str(arrays["task"]) not in TASKS:
        raise _refusal(file, f"has a task that is none of {', '.join(TASKS)}")
    for key, array in arrays.items():
        _check_form(file, key, array, str(arrays["task"]))
    dataset = FederatedDataset(
        name=arrays["name"].item(),
        inputs=arrays["inputs"],
        targets=arrays["targets"],
        **{split: Split(arrays[f"{split}_offsets"], arrays[f"{split}_sizes"]) for split in _SPLITS},
        num_classes=arrays["num_classes"].item(),
        mean=arrays["mean"] if arrays["mean"].ndim else arrays["mean"].item(),
        std=arrays["std"] if arrays["std"].ndim else arrays["std"].item(),
        num_unseen=arrays["num_unseen"].item(),
        task=str(arrays["task"]),
        vocabulary=tuple(arrays.get("vocabulary", np.empty(0, np.int32)).tolist()),
        target_mean=float(arrays.get("target_mean", 0.0)),
        target_std=float(arrays.get("target_std", 1.0)),
    )
    _check_consistency(file, dataset)
    return dataset


def _refusal(file: Path, fault: str) -> UserError:
    return UserError(f"{file} {fault}: write it again with save_npz.")


def _check_form(file: Path, key: str, array: np.ndarray, task: str) -> None:
    """Refuses an array whose dtype or number of axes is not the documented one."""
    if key == "inputs":
        if array.dtype.kind not in "biuf" or array.ndim == 0:
            raise _refusal(file, f"has inputs of dtype {array.dtype} where numbers are expected")
        return
    if key in ("name", "task"):
        fits, expected = array.dtype.kind == "U", "str"
    elif key in _STATISTICS:
        fits, expected = array.dtype.kind == "f", "float64"
    elif key == "targets" and task == "regression":
        fits, expected = array.dtype == np.float32, "float32"
    else:
        fits, expected = array.dtype == np.int32, "int32"
    if not fits:
        raise _refusal(file, f"has {key} of dtype {array.dtype} where {expected} is expected")
    if key in ("mean", "std"):
        return
    axes = 1 if key in ("targets", "vocabulary") or key.endswith(("_offsets", "_sizes")) else 0
    if key == "targets" and task == "next_token":
        axes = 2
    if array.ndim != axes:
        raise _refusal(file, f"has {key} with {array.ndim} axes where {axes} are expected")


def _check_consistency(file: Path, dataset: FederatedDataset) -> None:
    """Refuses a data set whose parts contradict each other."""
    num_examples, num_clients = len(dataset.inputs), dataset.num_clients
    if len(dataset.targets) != num_examples:
        raise _refusal(file, f"has {num_examples} inputs but {len(dataset.targets)} targets")
    lengths = {len(array) for name in _SPLITS for array in getattr(dataset, name)}
    if len(lengths) != 1 or num_clients == 0:
        raise _refusal(file, "has offsets and sizes that are empty or of different lengths")
    if not 0 <= dataset.num_unseen < num_clients:
        raise _refusal(file, f"has num_unseen {dataset.num_unseen} of {num_clients} clients")
    for mean, std in ((dataset.mean, dataset.std), (dataset.target_mean, dataset.target_std)):
        if not (np.isfinite(mean).all() and np.isfinite(std).all() and np.all(std > 0)):
            raise _refusal(file, "has a mean or std that is not finite, or a std not above 0")
    for statistic in (np.shape(dataset.mean), np.shape(dataset.std)):
        if statistic != dataset.inputs.shape[dataset.inputs.ndim - len(statistic) :]:
            raise _refusal(file, f"has a mean or std of shape {statistic}, which fits no example")
    refusals.check_values(file, dataset.inputs, "write it again with save_npz")
    for name in _SPLITS:
        offsets, sizes = (array.astype(np.int64) for array in getattr(dataset, name))
        outside = (offsets < 0) | (sizes < 0) | (offsets + sizes > num_examples)
        if outside.any():
            client = int(np.argmax(outside))
            raise _refusal(
                file, f"places {name} examples of client {client} outside its {num_examples} rows"
            )
        if name != "validation" and not sizes.all():
            raise _refusal(file, f"has no {name} example for client {int(np.argmin(sizes))}")
    train, validation, test = dataset.train, dataset.validation, dataset.test
    apart = (train.offsets + train.sizes != validation.offsets) | (
        validation.offsets + validation.sizes != test.offsets
    )
    if apart.any():
        client = int(np.argmax(apart))
        raise _refusal(file, f"does not hold the rows of client {client} one after the other")
    by_row = np.argsort(train.offsets)
    if np.any((test.offsets + test.sizes)[by_row][:-1] > train.offsets[by_row][1:]):
        raise _refusal(file, "gives the same rows to two clients")
    labels = dataset.targets
    if dataset.task == "regression":
        return refusals.check_values(file, labels, "write it again with save_npz")
    if labels.min() < 0 or labels.max() >= dataset.num_classes:
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise _refusal(file, f"has the label {wrong} but {dataset.num_classes} classes")
