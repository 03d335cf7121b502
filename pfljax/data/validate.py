"""Validation of data sets before they reach a device, in one module for all sources and formats.

`load` calls `examples` or `federated` on all data; `validate_arrays` has the checks of single
arrays.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pfljax.data.dataset import OF_NUMBERS, TASKS, FederatedDataset, Split
from pfljax.data.examples import Examples
from pfljax.data.input_arrays import by_name, map_inputs, of_name
from pfljax.data.validate_arrays import (
    CORRECT,
    LARGEST_NUM_CLASSES,
    as_float32_holds,
    finite,
    ids,
    whole,
)
from pfljax.errors import UserError

SPLITS = ("train", "validation", "test")
_LARGEST_COUNTS = 2**32  # bytes of the counts for each client and class


def examples(pool: Examples, where: str, *, part_of_store: bool = False) -> Examples:
    """Validates the examples of a source before they are partitioned.

    Args:
      pool: The result of the source.
      where: The data set and its directory, for error messages.
      part_of_store: Whether these are one client's examples, to be written to disk unchanged. The
        rounding of columns is then checked for the whole store instead.

    Returns:
      The pool; the dtypes of inputs and targets may have changed, see `federated`.

    Raises:
      UserError: A value is invalid for its task, or does not fit into float32 or int32.
    """

    def example(row: int) -> str:
        owner = "" if pool.owners is None else f" (owner {pool.owners[row]})"
        return f"example {row}{owner}"

    values = _values(where, pool, example, CORRECT, part_of_store)
    targets = values["targets"]
    if pool.owners is not None and len(pool.owners) != len(targets):
        raise UserError(f"{where} has {len(targets)} examples but {len(pool.owners)} owners.")
    if pool.item_of is not None and len(pool.item_of) != len(targets):
        raise UserError(
            f"{where} has {len(targets)} examples but items (item_of) of {len(pool.item_of)}."
        )
    return pool._replace(**values)


def federated(
    dataset: FederatedDataset, where: Path | str = "", remedy: str = CORRECT
) -> FederatedDataset:
    """Validates a federated data set, from a file or from the user's code.

    Args:
      dataset: The data set.
      where: The file, for error messages; by default the name of the data set.
      remedy: The advice that ends the error message.

    Returns:
      The data set, with labels in int32 and targets of a regression in float32. Inputs of 8 bytes
      in memory are converted to float32 or int32, as on a device; integers beyond int32 become
      float32. All other inputs are unchanged.

    Raises:
      UserError: Parts of it contradict each other, or a value is invalid for its task, or does not
        fit into float32 or int32; the message names the client and the row.
    """
    where = where or f"The data set {dataset.name}"
    fault = _contradiction(dataset)
    if fault:
        raise UserError(f"{where} {fault}: {remedy}.")

    def row_of_client(row: int) -> str:
        ends = dataset.test.offsets.astype(np.int64) + dataset.test.sizes
        owning = (dataset.train.offsets <= row) & (row < ends)
        client = f" (client {int(np.argmax(owning))})" if owning.any() else ""
        return f"row {row}{client}"

    return dataset._replace(**_values(where, dataset, row_of_client, remedy))


def _values(
    where: Path | str,
    data: Examples | FederatedDataset,
    row_name: Callable[[int], str],
    remedy: str,
    part_of_store: bool = False,
) -> dict[str, Any]:
    """Returns inputs, targets and items in dtypes that a device represents without loss."""
    targets, row_of_targets = data.targets, row_name

    def refuse(fault: str) -> UserError:
        return UserError(f"{where} {fault}: {remedy}.")

    if data.task not in TASKS:
        raise refuse(f"has the task {data.task!r}, which is not one of {', '.join(TASKS)}")
    if fault := _names(data):
        raise refuse(fault)
    arrays = by_name(data.inputs)
    for name, inputs in arrays.items():
        whose = _whose(name)
        if inputs.dtype.kind not in "biuf":
            raise refuse(f"has inputs{whose} of dtype {inputs.dtype} instead of numbers")
        if not len(targets) or len(inputs) != len(targets):
            raise refuse(
                f"has {len(inputs)} inputs{whose} but {len(targets)} targets, or no examples"
            )
        if 0 in inputs.shape[1:]:
            raise refuse(
                f"has examples{whose} of shape {inputs.shape[1:]}, which contain no number"
            )
    _num_classes(data, refuse)
    if data.items is not None:
        numbers, items = _items(where, data, row_name, refuse, remedy)
        arrays, row_name = {"": items}, "item {}".format
    for name, inputs in arrays.items():
        at = f"{where}, in its inputs{_whose(name)}," if name else where

        def refuse_inputs(fault: str, at: str | Path = at) -> UserError:
            return UserError(f"{at} {fault}: {remedy}.")

        if not inputs.dtype.isnative:
            if isinstance(inputs, np.memmap):
                raise refuse_inputs("has inputs in a foreign byte order")
            inputs = inputs.astype(inputs.dtype.newbyteorder("="))
        vocabulary = of_name(data.vocabulary, name, ())
        if vocabulary:
            arrays[name] = ids(at, inputs, vocabulary, remedy=remedy, row_name=row_name)
        else:
            finite(at, inputs, remedy=remedy, row_name=row_name)
            arrays[name] = as_float32_holds(inputs, refuse_inputs, part_of_store)
    checked = arrays if isinstance(data.inputs, Mapping) else arrays[""]
    found = {"targets": _targets(where, data, row_of_targets, refuse, remedy)}
    if data.items is not None:
        return found | {"inputs": numbers, "items": checked}
    return found | {"inputs": checked}


def _items(
    where: Path | str,
    data: Examples | FederatedDataset,
    row_name: Callable[[int], str],
    refuse: Callable[[str], UserError],
    remedy: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the item number of each example, as int32, and the items."""
    items = data.items
    if isinstance(data.inputs, Mapping) or data.inputs.ndim > 2:
        raise refuse("has items, but its inputs are not item numbers [n] or [n, K]")
    if items.ndim < 1 or not items.size or items.dtype.kind not in "biuf":
        raise refuse(f"has items of shape {items.shape} and dtype {items.dtype}, not numbers")
    about = {"least": 0, "most": len(items) - 1, "remedy": remedy, "row_name": row_name}
    return whole(where, data.inputs, "item number", **about), items


def _is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _whose(name: str) -> str:
    """Returns which array of inputs is meant, as a part of a sentence; '' for a single one."""
    return f" {name!r}" if name else ""


def _names(data: Examples | FederatedDataset) -> str | None:
    """Returns what is wrong with the names of inputs that are a dict; None for nothing."""
    statistics = {"mean": data.mean, "std": data.std, "vocabulary": data.vocabulary}
    for sizes in by_name(data.vocabulary).values():
        if not isinstance(sizes, tuple | list) or not all(map(_is_whole, sizes)):
            return f"has the vocabulary {sizes!r} where a tuple of whole numbers is expected"
    if not isinstance(data.inputs, Mapping):
        named = [key for key, value in statistics.items() if isinstance(value, Mapping)]
        return f"has a {named[0]} by name, but its inputs are a single array" if named else None
    if not data.inputs:
        return "has inputs that are an empty dict"
    for name, array in data.inputs.items():
        if not isinstance(name, str) or not name.isidentifier():
            return f"has inputs of the name {name!r} where names of letters and digits are expected"
        if not isinstance(array, np.ndarray) or array.ndim < 1:
            return f"has inputs {name!r} that are no array with an axis of examples"
    if data.vocabulary and not isinstance(data.vocabulary, Mapping):
        return (
            "has inputs that are a dict, and a vocabulary that does not say which of them are ids"
        )
    for key, value in statistics.items():
        if not isinstance(value, Mapping):
            continue
        if other := sorted(set(value) - set(data.inputs)):
            return f"has a {key} of {other[0]!r}, which its inputs lack"
        measured = set(data.inputs) - set(data.vocabulary or ())
        if key != "vocabulary" and (missing := sorted(measured - set(value))):
            return f"has a {key} by name, but none of the measured inputs {missing[0]!r}"
    return None


def _num_classes(data: Examples | FederatedDataset, refuse: Callable[[str], UserError]) -> None:
    most, classes = LARGEST_NUM_CLASSES, data.num_classes
    if data.task in ("classification", "next_token") and not 1 <= classes <= most:
        raise refuse(f"has {classes} classes; from 1 to {most} are allowed")
    if isinstance(data, FederatedDataset) and data.task == "classification":
        count = 4 * data.num_clients * classes
        if count > _LARGEST_COUNTS:
            raise refuse(
                f"has {data.num_clients} clients and {classes} classes, whose counts alone take "
                f"{count / 2**30:.0f} GiB"
            )


def _targets(
    where: Path | str,
    data: Examples | FederatedDataset,
    row_name: Callable[[int], str],
    refuse: Callable[[str], UserError],
    remedy: str,
) -> np.ndarray:
    """Returns the targets in the dtype of their task."""
    arrays, targets = list(by_name(data.inputs).values()), data.targets
    texts = [array.shape[:2] for array in arrays]
    fits = targets.ndim == 1 or (data.task == "next_token" and targets.shape in texts)
    if not fits:
        shapes = map_inputs(lambda array: array.shape, data.inputs)
        raise refuse(
            f"has targets of shape {targets.shape}, which do not match inputs of shape "
            f"{shapes} and the task {data.task}"
        )
    if targets.dtype.kind not in "biuf":
        raise refuse(f"has targets of dtype {targets.dtype} instead of numbers")
    if data.task == "recommendation" and (fault := _recommendation(data)):
        raise refuse(fault)
    if data.task in OF_NUMBERS:
        finite(f"{where}, in its targets,", targets, remedy=remedy, row_name=row_name)
        return targets if targets.dtype == np.float32 else targets.astype(np.float32)
    if data.task in ("ranking", "preference"):
        counts = {array.shape[1:2] for array in arrays}
        number = "items" if data.task == "ranking" else "2"
        fits = counts == {(2,)} or (number == "items" and counts != {()} and len(counts) == 1)
        if not fits or targets.any():
            raise refuse(
                f"has the task {data.task}, which needs inputs [{number}, ...] with the chosen "
                "item first and targets that are all 0, but other targets or inputs"
            )
        return targets.astype(np.int32, copy=False)
    return _labels(where, targets, data, row_name, refuse, remedy)


def _recommendation(data: Examples | FederatedDataset) -> str | None:
    """Returns what is wrong with the items of a recommendation; None for nothing."""
    sizes = () if isinstance(data.vocabulary, Mapping) else tuple(data.vocabulary)
    shape = () if isinstance(data.inputs, Mapping) else data.inputs.shape[1:]
    if data.items is not None:
        shape += data.items.shape[1:]
    if len(shape) != 2 or len(sizes) != shape[1] or len(sizes) < 3:
        return (
            f"has the task recommendation, whose examples are [S, 2 + columns] ids with the "
            f"vocabulary of each column, but examples of shape {shape} and the vocabulary {sizes}"
        )
    if not 1 <= data.num_classes < sizes[2]:
        return f"has {data.num_classes} tags, which are not among {sizes[2]} ids of attributes"
    first = np.asarray(data.inputs[:, 0])
    if data.items is not None:
        first = data.items[first.astype(np.int64)]
    if wrong := ((first[:, 0] < 1) | (first[:, 1] != 0)).nonzero()[0].tolist():
        return (
            f"has in example {wrong[0]} a first item that is none or has a rating; the first item "
            "is the chosen one, whose rating is the target"
        )
    return None


def _labels(where, targets, data, row_name, refuse, remedy) -> np.ndarray:
    if targets.dtype.kind in "iu":
        low, high = int(targets.min()), int(targets.max())
        if low < 0 or high >= data.num_classes:
            wrong = low if low < 0 else high
            raise refuse(
                f"has the label {wrong} but {data.num_classes} classes, numbered from 0 "
                "(pfljax.data.from_arrays numbers labels of any kind)"
            )
        # A memory-mapped array of the right dtype stays on disk.
        return targets if targets.dtype == np.int32 else targets.astype(np.int32)
    return whole(
        where,
        targets,
        "label",
        least=0,
        most=data.num_classes - 1,
        remedy=remedy,
        row_name=row_name,
    )


def _contradiction(dataset: FederatedDataset) -> str | None:
    """Returns how parts of a data set contradict each other; None if they do not."""
    if fault := _names(dataset):
        return fault
    num_examples, num_clients = len(dataset.targets), dataset.num_clients
    for name, array in by_name(dataset.inputs).items():
        if len(array) != num_examples:
            return f"has {len(array)} inputs{_whose(name)} but {num_examples} targets"
    splits: list[Split] = [getattr(dataset, name) for name in SPLITS]
    lengths = {len(array) for split in splits for array in split}
    if len(lengths) != 1 or num_clients == 0:
        return "has offsets and sizes that are empty or of different lengths"
    if not 0 <= dataset.num_unseen < num_clients:
        return f"has num_unseen {dataset.num_unseen} of {num_clients} clients"
    statistics = [
        (of_name(dataset.mean, name, 0.0), of_name(dataset.std, name, 1.0), array)
        for name, array in by_name(dataset.contents).items()
    ]
    for mean, std, *_ in [*statistics, (dataset.target_mean, dataset.target_std)]:
        if not (np.isfinite(mean).all() and np.isfinite(std).all() and np.all(std > 0)):
            return "has a mean or std that is not finite, or a std not above 0"
    for mean, std, array in statistics:
        for statistic in (np.shape(mean), np.shape(std)):
            if statistic != array.shape[array.ndim - len(statistic) :]:
                return f"has a mean or std of shape {statistic}, which does not match its examples"
    for name, split in zip(SPLITS, splits, strict=True):
        offsets, sizes = (np.asarray(array).astype(np.int64) for array in split)
        outside = (offsets < 0) | (sizes < 0) | (offsets + sizes > num_examples)
        if outside.any():
            client = int(np.argmax(outside))
            return f"has {name} examples of client {client} outside its {num_examples} rows"
        if name == "train" and not sizes.all():
            return f"has no {name} example for client {int(np.argmin(sizes))}"
        if name == "test" and not sizes[: dataset.num_participants].any():
            return "has no test example for any client that takes part in training"
    return None
