"""Validation of examples before they reach a device, in one module for all sources and formats.

Devices compute in float32 and int32 and do not report numbers that do not fit: an id beyond the
vocabulary reads another id's row, an integer beyond int32 overflows, and 1e39 becomes infinite. All
of this is detected here, on the host. Readers of single formats call `finite`, `whole`, `labels`
and `pixels`, because they still know the file and column of a number; `load` calls `examples` or
`federated` on all data.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pfljax.data.dataset import OF_NUMBERS, TASKS, FederatedDataset, Split
from pfljax.data.examples import Examples
from pfljax.data.input_arrays import by_name, map_inputs, of_name
from pfljax.errors import UserError

SPLITS = ("train", "validation", "test")
# More classes are implausible, and their per-class counts would take gigabytes.
LARGEST_NUM_CLASSES = 2**20
LARGEST_VOCABULARY = 2**26  # embeddings of width 32 would take 8 GiB
_LARGEST_COUNTS = 2**32  # bytes of the counts for each client and class
_FLOAT32 = float(np.finfo(np.float32).max)
_LARGEST_INTEGER = 2**62  # below it, differences of two integers fit into int64
_EXACT = 2**24  # up to here, every integer is a float32
# Bytes of a memory-mapped array to check, evenly spread; other arrays are checked entirely.
_LOOKED_AT = 2**30
_BLOCK = 2**24
# Rounding to float32 may change a value by this fraction of its column's standard deviation.
_ROUNDING = 0.01
_CORRECT = "correct the data, or remove the invalid ones"


def finite(
    where: Path | str,
    values: np.ndarray,
    *,
    remedy: str = _CORRECT,
    columns: Sequence[str] = (),
    row_name: Callable[[int], str] = "row {}".format,
) -> None:
    """Refuses values that float32 cannot represent: NaN, infinite, or beyond its range.

    Args:
      where: The file or data set, for the error message.
      values: `[n, ...]` of any dtype; integers are always finite.
      remedy: The advice that ends the error message.
      columns: The names of the last axis; without them, columns are numbered.
      row_name: Formats a row index for the error message.

    Raises:
      UserError: A value cannot be represented; the message names its row and column.
    """
    if values.dtype.kind != "f":
        return
    for start, block in _blocks(values):
        with np.errstate(invalid="ignore"):
            # Python floats, because in float16 the bound would be infinite.
            low, high = float(block.min(initial=0)), float(block.max(initial=0))
        if -_FLOAT32 <= low and high <= _FLOAT32:  # false if there is a NaN
            continue
        with np.errstate(invalid="ignore"):
            block = block.astype(np.float64)
            index = tuple(np.argwhere(~(np.abs(block) <= _FLOAT32))[0].tolist())
        value = block[index]
        reason = ", which float32 cannot represent" if np.isfinite(value) else ""
        raise UserError(
            f"{where} has the value {value:g}{_column(index[1:], columns)} of "
            f"{row_name(start + index[0])}{reason}: {remedy}."
        )


def whole(
    where: Path | str,
    values: np.ndarray,
    what: str,
    *,
    least: int = -(2**31),
    most: int = 2**31 - 1,
    remedy: str = _CORRECT,
    row_name: Callable[[int], str] = "row {}".format,
) -> np.ndarray:
    """Returns numbers as int32, after checking that they are whole and in range.

    Args:
      where: The file or data set, for the error message.
      values: Numbers of any dtype and shape.
      what: The noun for one of them, such as 'label'.
      least: The smallest valid value.
      most: The largest valid value.
      remedy: The advice that ends the error message.
      row_name: Formats a row index for the error message.

    Raises:
      UserError: A value is not a whole number, or outside the range.
    """
    values = np.asarray(values)
    if values.dtype.kind not in "biuf":
        raise UserError(
            f"{where} has a {what} that is not a number (dtype {values.dtype}) instead of a whole "
            f"number: {remedy}."
        )
    if values.dtype.kind == "b":
        values = values.astype(np.int32)
    if not values.size:
        return values.astype(np.int32)
    if values.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            wrong = ~((values >= least) & (values <= most) & (values == np.rint(values)))
    elif least <= int(values.min()) and int(values.max()) <= most:
        return values.astype(np.int32, copy=False)
    else:
        # Python integers, because no dtype contains both uint64 and negative numbers.
        wrong = np.array([not least <= int(value) <= most for value in values.flat])
        wrong = wrong.reshape(values.shape)
    if wrong.any():
        index = tuple(np.argwhere(wrong)[0].tolist())
        of_row = f" in {row_name(index[0])}" if index else ""
        raise UserError(
            f"{where} has the {what} {values[index]}{of_row} instead of a whole number from "
            f"{least} to {most}: {remedy}."
        )
    return values.astype(np.int32)


def labels(
    where: Path | str,
    values: np.ndarray,
    num_classes: int,
    *,
    remedy: str = "put the original file there",
) -> np.ndarray:
    """Returns `[n]` labels as int32, after checking that they are integers in `[0, num_classes)`.

    Args:
      where: The file, for the error message.
      values: The labels, of any dtype.
      num_classes: `C`.
      remedy: The advice that ends the error message.

    Raises:
      UserError: A label is outside the range, or not a number.
    """
    values = np.asarray(values)
    if values.ndim != 1 or values.dtype.kind not in "biuf":
        raise UserError(
            f"{where} has labels of shape {values.shape} and dtype {values.dtype} instead of a "
            f"number for each example: {remedy}."
        )
    with np.errstate(invalid="ignore"):
        wrong = ~((values >= 0) & (values < num_classes) & (values == np.rint(values)))
    if wrong.any():
        raise UserError(
            f"{where} has the label {values[wrong][0]} instead of a whole number from 0 to "
            f"{num_classes - 1}: {remedy}."
        )
    return values.astype(np.int32)


def ids(
    where: Path | str,
    inputs: np.ndarray,
    vocabulary: tuple[int, ...],
    *,
    remedy: str,
    row_name: Callable[[int], str] = "row {}".format,
) -> np.ndarray:
    """Returns inputs that are ids, after checking that each is below the size of its id space.

    Args:
      where: The file or data set, for the error message.
      inputs: `[n, ...]` ids.
      vocabulary: The sizes, one for all columns or one for each.
      remedy: The advice that ends the error message.
      row_name: Formats a row index for the error message.

    Raises:
      UserError: An id is outside its range, or not an integer.
    """
    if inputs.dtype.kind not in "iu":
        raise UserError(
            f"{where} has inputs of dtype {inputs.dtype}, but its vocabulary requires ids, whole "
            f"numbers such as int32: {remedy}."
        )
    if max(vocabulary) > LARGEST_VOCABULARY:
        raise UserError(
            f"{where} has a vocabulary of {max(vocabulary)}; at most {LARGEST_VOCABULARY} is "
            f"allowed: {remedy}."
        )
    columns = 1 if len(vocabulary) == 1 else inputs.shape[-1]
    if columns != len(vocabulary) or min(vocabulary) < 1:
        raise UserError(
            f"{where} has examples of shape {inputs.shape[1:]}, which do not match the vocabulary "
            f"{vocabulary}: {remedy}."
        )
    for start, block in _blocks(inputs):
        for column, size in enumerate(vocabulary):
            found = block if columns == 1 else block[..., column]
            low, high = int(found.min(initial=0)), int(found.max(initial=0))
            if low >= 0 and high < size:
                continue
            wrong = low if low < 0 else high
            row = start + int(np.argwhere(found == wrong)[0][0])
            of_column = "" if columns == 1 else f" in column {column}"
            raise UserError(
                f"{where} has the id {wrong}{of_column} of {row_name(row)} but a vocabulary of "
                f"{size}: {remedy}."
            )
    return inputs if isinstance(inputs, np.memmap) else _narrow(inputs)


def pixels(where: Path | str, values: np.ndarray, *, remedy: str) -> np.ndarray:
    """Returns counts or pixels as uint8, after checking that they are integers from 0 to 255.

    Args:
      where: The file, for the error message.
      values: Numbers of any dtype.
      remedy: The advice that ends the error message.

    Raises:
      UserError: A value is outside the range, for example if pixels from 0 to 1 were stored.
    """
    if values.dtype == np.uint8:
        return values
    return whole(where, values, "value", least=0, most=255, remedy=remedy).astype(np.uint8)


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

    values = _values(where, pool, example, _CORRECT, part_of_store)
    targets = values["targets"]
    if pool.owners is not None and len(pool.owners) != len(targets):
        raise UserError(f"{where} has {len(targets)} examples but {len(pool.owners)} owners.")
    return pool._replace(**values)


def federated(
    dataset: FederatedDataset, where: Path | str = "", remedy: str = _CORRECT
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
            arrays[name] = _as_float32_holds(inputs, refuse_inputs, part_of_store)
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


def _as_float32_holds(
    inputs: np.ndarray, refuse: Callable[[str], UserError], part_of_store: bool
) -> np.ndarray:
    """Returns numeric inputs, after checking that float32 represents them well enough."""
    integers = inputs.dtype.kind in "iu"
    if inputs.dtype.itemsize < 4 or inputs.dtype.kind == "b" or inputs.dtype == np.float32:
        return inputs
    columns = int(np.prod(inputs.shape[1:]))
    low, high = np.full(columns, np.inf), np.full(columns, -np.inf)
    varies, first = np.zeros(columns, bool), inputs[0].reshape(columns)
    for _, block in _blocks(inputs):
        rows = block.reshape(len(block), columns)
        least, most = rows.min(axis=0), rows.max(axis=0)
        low, high = np.minimum(low, least), np.maximum(high, most)
        varies |= (least != first) | (most != first)
    largest = np.maximum(np.abs(low), np.abs(high))
    stays = part_of_store or isinstance(inputs, np.memmap)
    if integers and largest.max() <= _EXACT:
        return inputs if stays else _narrow(inputs)
    if integers and largest.max() >= _LARGEST_INTEGER:
        raise refuse(f"has inputs of dtype {inputs.dtype} beyond 2**62; scale them first")
    # If even the smallest standard deviation that these extremes allow is large relative to the
    # rounding, as nearly always, the exact check is not needed.
    bound = _ROUNDING * (high - low) / math.sqrt(2 * len(inputs))
    in_doubt = varies & ((largest * 2.0**-24 > bound) | (largest < 1e-37))
    if not part_of_store:
        _round_well(inputs, np.flatnonzero(in_doubt), refuse)
    if not integers or (low.min() >= -(2**31) and high.max() < 2**31):
        return inputs if stays else _narrow(inputs)
    if stays:
        raise refuse(
            f"has inputs of dtype {inputs.dtype} beyond the range of int32; write them as float32"
        )
    return inputs.astype(np.float32)


def _narrow(inputs: np.ndarray) -> np.ndarray:
    """Returns numbers in the dtype of devices; their range was checked before."""
    if inputs.dtype.kind == "f":
        return inputs if inputs.dtype.itemsize <= 4 else inputs.astype(np.float32)
    return inputs if np.can_cast(inputs.dtype, np.int32) else inputs.astype(np.int32)


def _round_well(
    inputs: np.ndarray, columns: np.ndarray, refuse: Callable[[str], UserError]
) -> None:
    """Refuses columns that rounding to float32 changes by much of their standard deviation."""
    if not len(columns):
        return
    # Integers are compared as such: from 2^53 on, float64 cannot distinguish them either.
    wide = np.int64 if inputs.dtype.kind in "iu" else np.float64
    error, total, squares = (np.zeros(len(columns)) for _ in range(3))
    count, first = 0, None
    for _, block in _blocks(inputs):
        values = block.reshape(len(block), -1)[:, columns].astype(wide)
        rounded = values.astype(np.float32).astype(wide)
        error = np.maximum(error, np.abs(values - rounded).max(axis=0))
        first = values[0] if first is None else first
        offsets = (values - first).astype(np.float64)
        count, total = count + len(values), total + offsets.sum(axis=0)
        squares += np.square(offsets).sum(axis=0)
    deviation = np.sqrt(np.maximum(squares / count - (total / count) ** 2, 0.0))
    bad = error > _ROUNDING * deviation
    if bad.any():
        worst = int(np.argmax(bad))
        index = np.unravel_index(columns[worst], inputs.shape[1:]) if inputs.ndim > 1 else ()
        raise refuse(
            f"has values{_column(tuple(map(int, index)), ())} like {first[worst]} that are too "
            "close for float32 to distinguish; subtract an offset or scale them first"
        )


def _blocks(values: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yields blocks of rows with their first index; only some blocks of a large file on disk."""
    row_bytes = max(1, values.nbytes // max(1, len(values)))
    rows = max(1, _BLOCK // row_bytes)
    starts = range(0, len(values), rows)
    if isinstance(values, np.memmap) and values.nbytes > _LOOKED_AT:
        most = max(2, _LOOKED_AT // (rows * row_bytes))
        starts = sorted({starts[i * (len(starts) - 1) // (most - 1)] for i in range(most)})
    for start in starts:
        yield start, np.asarray(values[start : start + rows])


def _column(index: tuple[int, ...], columns: Sequence[str]) -> str:
    """Returns the column of a value in an example, as part of a sentence."""
    if not index:
        return ""
    if columns:
        return f" in the column {columns[index[-1]]}"
    return f" in column {index[0] if len(index) == 1 else index}"


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
