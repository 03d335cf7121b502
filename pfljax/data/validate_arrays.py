"""Checks of single arrays: numbers that devices can represent, whole numbers, labels, ids, pixels.

Devices compute in float32 and int32 and do not report numbers that do not fit: an id beyond the
vocabulary reads another id's row, an integer beyond int32 overflows, and 1e39 becomes infinite. All
of this is detected here, on the host. Readers of single formats call these functions, because they
still know the file and the column of a number; `validate` calls them on all data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from pfljax.errors import UserError

# More classes are implausible, and their per-class counts would take gigabytes.
LARGEST_NUM_CLASSES = 2**20
LARGEST_VOCABULARY = 2**26  # embeddings of width 32 would take 8 GiB
CORRECT = "correct the data, or remove the invalid ones"
_FLOAT32 = float(np.finfo(np.float32).max)
_LARGEST_INTEGER = 2**62  # below it, differences of two integers fit into int64
_EXACT = 2**24  # up to here, every integer is a float32
# Bytes of a memory-mapped array to check, evenly spread; other arrays are checked entirely.
_LOOKED_AT = 2**30
_BLOCK = 2**24
# Rounding to float32 may change a value by this fraction of its column's standard deviation.
_ROUNDING = 0.01


def finite(
    where: Path | str,
    values: np.ndarray,
    *,
    remedy: str = CORRECT,
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
    remedy: str = CORRECT,
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


def as_float32_holds(
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
