"""The keys of pfljax's own formats, and what they must hold.

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

`N` are the clients.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pfljax.data.dataset import TASKS, FederatedDataset, Split
from pfljax.data.formats import refusals
from pfljax.errors import UserError

SPLITS = ("train", "validation", "test")
OPTIONAL = ("task", "vocabulary", "target_mean", "target_std")
REQUIRED = (
    *("name", "inputs", "targets", "num_classes", "num_unseen", "mean", "std"),
    *(f"{split}_{part}" for split in SPLITS for part in Split._fields),
)
DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, EOFError),
    *(ValueError, TypeError, AttributeError, NotImplementedError),
)
_STATISTICS = ("mean", "std", "target_mean", "target_std")


def read(file: Path, remedy: str) -> dict[str, np.ndarray]:
    """Returns those arrays of an `.npz` whose keys stand above.

    Raises:
      UserError: the file is absent or damaged, or holds other things than plain arrays.
    """
    try:
        # NumPy leaves a file open that it opened and cannot read.
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            return {key: stored[key] for key in (*REQUIRED, *OPTIONAL) if key in stored.files}
    except OSError as error:
        raise refusals.unreadable(file, error) from error
    except DAMAGED as error:
        raise UserError(
            f"{file} is truncated, damaged or no .npz of plain arrays: {remedy}."
        ) from error


def to_arrays(dataset: FederatedDataset) -> dict[str, Any]:
    """Returns a data set by the keys above."""
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
    for split in SPLITS:
        arrays[f"{split}_offsets"], arrays[f"{split}_sizes"] = getattr(dataset, split)
    return arrays


def from_arrays(
    file: Path, arrays: Mapping[str, np.ndarray], remedy: str, *, look_at_inputs: bool = True
) -> FederatedDataset:
    """The inverse of `to_arrays`, for arrays that somebody else may have written.

    Args:
      file: where they come from, for messages.
      arrays: all the required keys.
      remedy: what to do about a fault.
      look_at_inputs: whether to look for inputs that are not finite, which reads all of them.

    Raises:
      UserError: something is missing, has another form, or contradicts another part.
    """
    missing = set(REQUIRED) - set(arrays)
    if missing:
        raise refusals.faulty(file, f"lacks {', '.join(sorted(missing))}", remedy)
    arrays = {"task": np.array("classification"), **arrays}
    if arrays["task"].dtype.kind != "U" or str(arrays["task"]) not in TASKS:
        fault = f"has a task that is none of {', '.join(TASKS)}"
        raise refusals.faulty(file, fault, remedy)
    for key, array in arrays.items():
        fault = _fault_of_form(key, array, str(arrays["task"]))
        if fault:
            raise refusals.faulty(file, fault, remedy)
    dataset = FederatedDataset(
        name=arrays["name"].item(),
        inputs=arrays["inputs"],
        targets=arrays["targets"],
        **{split: Split(arrays[f"{split}_offsets"], arrays[f"{split}_sizes"]) for split in SPLITS},
        num_classes=arrays["num_classes"].item(),
        mean=arrays["mean"] if arrays["mean"].ndim else arrays["mean"].item(),
        std=arrays["std"] if arrays["std"].ndim else arrays["std"].item(),
        num_unseen=arrays["num_unseen"].item(),
        task=str(arrays["task"]),
        vocabulary=tuple(arrays.get("vocabulary", np.empty(0, np.int32)).tolist()),
        target_mean=float(arrays.get("target_mean", 0.0)),
        target_std=float(arrays.get("target_std", 1.0)),
    )
    fault = _contradiction(dataset)
    if fault:
        raise refusals.faulty(file, fault, remedy)
    if look_at_inputs:
        refusals.check_values(file, dataset.inputs, remedy)
    if dataset.task == "regression":
        refusals.check_values(file, dataset.targets, remedy)
    return dataset


def _fault_of_form(key: str, array: np.ndarray, task: str) -> str | None:
    """Returns what is wrong with an array's dtype or number of axes; None for nothing."""
    if key == "inputs":
        if array.dtype.kind not in "biuf" or array.ndim == 0:
            return f"has inputs of dtype {array.dtype} where numbers are expected"
        return None
    if key in ("name", "task"):
        fits, expected = array.dtype.kind == "U", "str"
    elif key in _STATISTICS:
        fits, expected = array.dtype.kind == "f", "float64"
    elif key == "targets" and task == "regression":
        fits, expected = array.dtype == np.float32, "float32"
    else:
        fits, expected = array.dtype == np.int32, "int32"
    if not fits:
        return f"has {key} of dtype {array.dtype} where {expected} is expected"
    if key in ("mean", "std"):
        return None
    axes = 1 if key in ("targets", "vocabulary") or key.endswith(("_offsets", "_sizes")) else 0
    if key == "targets" and task == "next_token":
        axes = 2
    if array.ndim != axes:
        return f"has {key} with {array.ndim} axes where {axes} are expected"
    return None


def _contradiction(dataset: FederatedDataset) -> str | None:
    """Returns how parts of a data set contradict each other; None where they do not."""
    num_examples, num_clients = len(dataset.inputs), dataset.num_clients
    if len(dataset.targets) != num_examples:
        return f"has {num_examples} inputs but {len(dataset.targets)} targets"
    lengths = {len(array) for name in SPLITS for array in getattr(dataset, name)}
    if len(lengths) != 1 or num_clients == 0:
        return "has offsets and sizes that are empty or of different lengths"
    if not 0 <= dataset.num_unseen < num_clients:
        return f"has num_unseen {dataset.num_unseen} of {num_clients} clients"
    for mean, std in ((dataset.mean, dataset.std), (dataset.target_mean, dataset.target_std)):
        if not (np.isfinite(mean).all() and np.isfinite(std).all() and np.all(std > 0)):
            return "has a mean or std that is not finite, or a std not above 0"
    for statistic in (np.shape(dataset.mean), np.shape(dataset.std)):
        if statistic != dataset.inputs.shape[dataset.inputs.ndim - len(statistic) :]:
            return f"has a mean or std of shape {statistic}, which fits no example"
    for name in SPLITS:
        offsets, sizes = (array.astype(np.int64) for array in getattr(dataset, name))
        outside = (offsets < 0) | (sizes < 0) | (offsets + sizes > num_examples)
        if outside.any():
            client = int(np.argmax(outside))
            return f"places {name} examples of client {client} outside its {num_examples} rows"
        if name != "validation" and not sizes.all():
            return f"has no {name} example for client {int(np.argmin(sizes))}"
    train, validation, test = dataset.train, dataset.validation, dataset.test
    apart = (train.offsets + train.sizes != validation.offsets) | (
        validation.offsets + validation.sizes != test.offsets
    )
    if apart.any():
        client = int(np.argmax(apart))
        return f"does not hold the rows of client {client} one after the other"
    by_row = np.argsort(train.offsets)
    if np.any((test.offsets + test.sizes)[by_row][:-1] > train.offsets[by_row][1:]):
        return "gives the same rows to two clients"
    labels = dataset.targets
    if dataset.task in ("regression", "ranking"):
        return None
    if labels.min() < 0 or labels.max() >= dataset.num_classes:
        wrong = labels.min() if labels.min() < 0 else labels.max()
        return f"has the label {wrong} but {dataset.num_classes} classes"
    return None
