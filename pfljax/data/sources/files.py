"""Finds and reads the files of a data set, with one-line errors."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.io

from pfljax.data import reading, validate_arrays
from pfljax.errors import UserError

_PACKED = ("", ".gz", ".xz")
_WHOLE = re.compile(r"\s*[+-]?[0-9]{1,18}\s*")
# The header size of a MATLAB file, and the type of compressed elements.
_MATLAB_HEADER, _MATLAB_PACKED = 128, 15
FETCH_AGAIN = "download the file again"


def directories(data_dir: str, folders: Sequence[str]) -> list[Path]:
    """Returns the directories to search: those with a name of the data set, then `data_dir`.

    Directories with a name of the data set come first, because several data sets have files of the
    same names.

    Args:
      data_dir: The user's directory; empty for none.
      folders: The usual names of the data set's directory.
    """
    root = Path(data_dir).expanduser()
    return [root / folder for folder in folders] + [root] if data_dir else []


def find(searched: Sequence[Path], files: Sequence[str]) -> list[Path] | None:
    """Returns the files of the first directory that has them, plain or compressed as .gz or .xz.

    Args:
      searched: The directories to search, in this order.
      files: The names without the suffix of a compression; all of them are needed.

    Returns:
      The paths, in the order of `files`; None if no directory has any of them.

    Raises:
      UserError: A directory has some of the files, but not all.
    """
    for directory in searched:
        candidates = [[directory / f"{file}{end}" for end in _PACKED] for file in files]
        paths = [next(filter(Path.is_file, each), None) for each in candidates]
        missing = [file for file, path in zip(files, paths, strict=True) if path is None]
        if not missing:
            return [path for path in paths if path is not None]
        if len(missing) < len(files):
            raise UserError(
                f"{directory} lacks {', '.join(missing)} (plain or compressed as .gz or .xz): put "
                f"all {len(files)} files there."
            )
    return None


def absent(name: str, searched: Sequence[Path], remedy: str) -> UserError:
    """Returns the error for a data set that no directory contains.

    Args:
      name: The name of the data set.
      searched: The directories that were searched.
      remedy: The advice that ends the error message.
    """
    where = " or ".join(map(str, searched)) or "data.dir, which is empty"
    return UserError(f"No {name} in {where}: {remedy}.")


def read(path: Path) -> bytes:
    """Returns the content of a file, decompressed if it is gzip or xz.

    Raises:
      UserError: The file cannot be read, is truncated or damaged, has a wrong checksum, or unpacks
        to far more than it should.
    """
    return reading.content(path, FETCH_AGAIN)


def load_matlab(path: Path) -> dict[str, np.ndarray]:
    """Returns all arrays of a MATLAB file.

    Raises:
      UserError: The file cannot be read, or unpacks to far more than it should.
      Exception: Damaged files fail in many ways.
    """
    content = read(path)
    limit, total, start = reading.most_bytes(len(content)), 0, _MATLAB_HEADER
    order = "big" if content[126:128] == b"MI" else "little"
    while start + 8 <= len(content):
        kind, size = (int.from_bytes(content[at : at + 4], order) for at in (start, start + 4))
        if kind == _MATLAB_PACKED:
            packed = content[start + 8 : start + 8 + size]
            total += reading.unpacked_size(packed, limit)
            if total > limit:
                raise reading.bomb(path, limit, FETCH_AGAIN)
        start += 8 + size
    return scipy.io.loadmat(io.BytesIO(content))


def read_matlab(path: Path, *keys: str) -> list[np.ndarray]:
    """Returns arrays of a MATLAB file by their names.

    Raises:
      UserError: The file is damaged, or lacks an array.
    """
    try:
        content = load_matlab(path)
        arrays = [content[key] for key in keys]
        if not all(isinstance(array, np.ndarray) for array in arrays):
            raise TypeError("a sparse matrix")
    except UserError:
        raise
    except Exception as error:  # Damaged files fail in many ways.
        raise UserError(
            f"{path} is damaged or not a MATLAB file of {' and '.join(keys)}: {FETCH_AGAIN}."
        ) from error
    return arrays


def numbers(path: Path | str, array: np.ndarray, what: str) -> np.ndarray:
    """Returns an array of numbers, after checking that float32 represents them.

    Args:
      path: The file, for error messages.
      array: An array of any dtype.
      what: The noun for its values.

    Raises:
      UserError: The values are strings or complex, or one is infinite or NaN.
    """
    if array.dtype.kind not in "biuf":
        raise UserError(
            f"{path} has {what} of dtype {array.dtype} instead of numbers: {FETCH_AGAIN}."
        )
    validate_arrays.finite(path, array, remedy=FETCH_AGAIN)
    return array


def read_text(path: Path) -> str:
    """Returns the content of a text file, decompressed if it is gzip or xz.

    Raises:
      UserError: The file cannot be read, or is not text in UTF-8.
    """
    return decode(path, read(path))


def decode(path: Path, content: bytes) -> str:
    """Decodes the content of a text file.

    Raises:
      UserError: The content is not text in UTF-8.
    """
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8: {FETCH_AGAIN}.") from error
    if "\0" in text:
        raise UserError(
            f"{path} has a NUL character at {text.index(chr(0))} and is not text: {FETCH_AGAIN}."
        )
    return text


def row_of_table(row: int) -> str:
    """Returns the name of a row of a text table in messages, counted from 1 below the header."""
    return f"data row {row + 1}"


def whole_number(text: str) -> int:
    """Returns the whole number in a cell of a table, written in digits only.

    Raises:
      ValueError: The cell is not such a number, for example `1_000`, which Python would accept.
    """
    if not _WHOLE.fullmatch(text):
        raise ValueError(f"{text[:20]!r} is not a whole number")
    return int(text)


def table(text: str, delimiter: str | None = None) -> np.ndarray:
    """Returns rows of numbers, `[rows, columns]` float64.

    Raises:
      ValueError: A cell is not a number, rows have different lengths, or there are no rows.
    """
    if not text.strip():
        raise ValueError("no rows")
    # Comments are disabled: otherwise a damaged byte could turn a row into one.
    return np.loadtxt(io.StringIO(text), delimiter=delimiter, ndmin=2, comments=None)


def read_array(path: Path, *shapes: tuple[int | None, ...]) -> np.ndarray:
    """Returns the array of numbers in an .npy file, compressed or plain.

    Args:
      path: The file.
      *shapes: The allowed shapes; None stands for any length.

    Raises:
      UserError: The file cannot be read, is damaged, or contains another kind of array.
    """
    try:
        array = reading.npy(read(path))
    except ValueError as error:
        raise UserError(
            f"{path} is truncated, damaged or not an .npy file of numbers ({error}): {FETCH_AGAIN}."
        ) from error
    fits = any(
        len(array.shape) == len(shape)
        and all(want in (None, has) for want, has in zip(shape, array.shape, strict=True))
        for shape in shapes
    )
    if not fits or array.dtype.kind not in "biuf":
        wanted = " or ".join(
            "x".join("n" if length is None else str(length) for length in shape) for shape in shapes
        )
        raise UserError(
            f"{path} has an array of shape {array.shape} and dtype {array.dtype} instead of "
            f"numbers of shape {wanted}: {FETCH_AGAIN}."
        )
    validate_arrays.finite(path, array, remedy=FETCH_AGAIN)
    return array


def read_npz(path: Path, *names: str) -> list[np.ndarray]:
    """Returns arrays of an .npz file by their names.

    Raises:
      UserError: The file cannot be read, is damaged, or lacks an array.
    """
    members = [f"{name}.npy" for name in names]
    found = dict(reading.members(path, members, FETCH_AGAIN))
    if missing := [name for name in names if f"{name}.npy" not in found]:
        raise UserError(f"{path} lacks {', '.join(missing)}: {FETCH_AGAIN}.")
    arrays = []
    for name, member in zip(names, members, strict=True):
        try:
            arrays.append(reading.npy(found[member]))
        except ValueError as error:
            raise UserError(
                f"{path} contains {name}, which is damaged or not an array of numbers ({error}): "
                f"{FETCH_AGAIN}."
            ) from error
    return arrays


def owners(path: Path, values: np.ndarray) -> np.ndarray:
    """Returns the numbers of owners as int32, after checking that they are integers.

    Raises:
      UserError: A number is not an integer.
    """
    return validate_arrays.whole(path, values, "owner", remedy=FETCH_AGAIN)


def same_length(**paths_and_arrays: tuple[Path, np.ndarray]) -> None:
    """Refuses arrays of different lengths that should describe the same examples.

    Args:
      **paths_and_arrays: The file and the array of each content, such as images and labels.

    Raises:
      UserError: The lengths differ.
    """
    (first, (path, array)), *others = paths_and_arrays.items()
    for what, (other_path, other) in others:
        if len(other) != len(array):
            raise UserError(
                f"{path} has {len(array)} {first} but {other_path} {len(other)} {what}: "
                "download both files again from one source."
            )


def labels_below(path: Path, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns labels as int32, after checking that they are integers in `[0, num_classes)`.

    Raises:
      UserError: A label is outside the range.
    """
    return validate_arrays.labels(path, labels, num_classes)
