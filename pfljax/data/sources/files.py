"""Where a data set's files lie, and what is inside them; whatever is wrong costs one sentence."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.io

from pfljax.data import reading, validate
from pfljax.errors import UserError

_PACKED = ("", ".gz", ".xz")
_WHOLE = re.compile(r"\s*[+-]?[0-9]{1,18}\s*")
# Of a MATLAB file: its header, and the number that marks packed elements.
_MATLAB_HEADER, _MATLAB_PACKED = 128, 15
FETCH_AGAIN = "fetch the file again"


def directories(data_dir: str, folders: Sequence[str]) -> list[Path]:
    """Returns where to look: folders of the data set's own name first, then `data_dir` itself.

    Its own folder comes first because file names often do not tell one data set from another.

    Args:
      data_dir: the user's; empty for nowhere.
      folders: names under which the data set is known to be unpacked.
    """
    root = Path(data_dir).expanduser()
    return [root / folder for folder in folders] + [root] if data_dir else []


def find(places: Sequence[Path], files: Sequence[str]) -> list[Path] | None:
    """Returns the first place's `files`, each plain or packed as .gz or .xz.

    Args:
      places: directories to look into, in this order.
      files: names without the suffix of a packer; all of them are needed.

    Returns:
      Their paths, in the order of `files`; None if no place holds any of them.

    Raises:
      UserError: a place holds some of them but not all.
    """
    for directory in places:
        candidates = [[directory / f"{file}{end}" for end in _PACKED] for file in files]
        paths = [next(filter(Path.is_file, each), None) for each in candidates]
        missing = [file for file, path in zip(files, paths, strict=True) if path is None]
        if not missing:
            return [path for path in paths if path is not None]
        if len(missing) < len(files):
            raise UserError(
                f"{directory} lacks {', '.join(missing)} (plain or packed as .gz or .xz): put all "
                f"{len(files)} files there."
            )
    return None


def absent(name: str, places: Sequence[Path], remedy: str) -> UserError:
    """Returns the sentence for a data set that no place holds.

    Args:
      name: of the data set.
      places: that were looked into.
      remedy: what to do, as the end of a sentence.
    """
    where = " or ".join(map(str, places)) or "data.dir, which is empty"
    return UserError(f"No {name} in {where}: {remedy}.")


def read(path: Path) -> bytes:
    """Returns a file's content, unpacked if it is gzip or xz.

    Raises:
      UserError: the file cannot be read, is truncated, damaged or of a wrong checksum, or unpacks
        to far more than it should.
    """
    return reading.content(path, FETCH_AGAIN)


def load_matlab(path: Path) -> dict[str, np.ndarray]:
    """Returns all of a MATLAB file.

    Raises:
      UserError: the file cannot be read, or unpacks to far more than it should.
      Exception: damaged files fail in nearly every way there is.
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
      UserError: it is damaged, or lacks one of them.
    """
    try:
        content = load_matlab(path)
        arrays = [content[key] for key in keys]
        if not all(isinstance(array, np.ndarray) for array in arrays):
            raise TypeError("a sparse matrix")
    except UserError:
        raise
    except Exception as error:  # Damaged files fail in nearly every way there is.
        raise UserError(
            f"{path} is damaged or no MATLAB file of {' and '.join(keys)}: {FETCH_AGAIN}."
        ) from error
    return arrays


def numbers(path: Path | str, array: np.ndarray, what: str) -> np.ndarray:
    """Returns an array of numbers that float32 holds.

    Args:
      path: the file, for messages.
      array: of any dtype.
      what: what it holds.

    Raises:
      UserError: they are strings or complex, or one is infinite or not a number.
    """
    if array.dtype.kind not in "biuf":
        raise UserError(
            f"{path} holds {what} of dtype {array.dtype} where numbers are expected: {FETCH_AGAIN}."
        )
    validate.finite(path, array, remedy=FETCH_AGAIN)
    return array


def read_text(path: Path) -> str:
    """Returns a text file's content, unpacked if it is gzip or xz.

    Raises:
      UserError: the file cannot be read, or is no text in UTF-8.
    """
    return decode(path, read(path))


def decode(path: Path, content: bytes) -> str:
    """Returns the text in a file's content.

    Raises:
      UserError: it is no text in UTF-8.
    """
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8: {FETCH_AGAIN}.") from error
    if "\0" in text:
        raise UserError(
            f"{path} holds a NUL character, which no text does, at {text.index(chr(0))}: "
            f"{FETCH_AGAIN}."
        )
    return text


def row_of_table(row: int) -> str:
    """Returns what messages call a row of a text table, counted from 1 below its header."""
    return f"data row {row + 1}"


def whole_number(text: str) -> int:
    """Returns the whole number that a cell of a table holds, written in digits alone.

    Raises:
      ValueError: it holds another thing, such as `1_000`, which Python would read.
    """
    if not _WHOLE.fullmatch(text):
        raise ValueError(f"{text[:20]!r} is no whole number")
    return int(text)


def table(text: str, delimiter: str | None = None) -> np.ndarray:
    """Returns rows of numbers, `[rows, columns]` float64.

    Raises:
      ValueError: a cell is no number, rows are of several lengths, or there is none.
    """
    if not text.strip():
        raise ValueError("no row")
    # Without comments: a damaged byte would otherwise make a row one.
    return np.loadtxt(io.StringIO(text), delimiter=delimiter, ndmin=2, comments=None)


def read_array(path: Path, *shapes: tuple[int | None, ...]) -> np.ndarray:
    """Returns the array of numbers in an .npy file, packed or plain.

    Args:
      path: the file.
      *shapes: of which it must have one; None where any length will do.

    Raises:
      UserError: the file cannot be read, is damaged, or holds another kind of array.
    """
    try:
        array = reading.npy(read(path))
    except ValueError as error:
        raise UserError(
            f"{path} is truncated, damaged or no .npy of numbers ({error}): {FETCH_AGAIN}."
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
            f"{path} holds an array of shape {array.shape} and dtype {array.dtype} where numbers "
            f"of shape {wanted} are expected: {FETCH_AGAIN}."
        )
    validate.finite(path, array, remedy=FETCH_AGAIN)
    return array


def owners(path: Path, values: np.ndarray) -> np.ndarray:
    """Returns the numbers of owners as int32, having found them to be whole.

    Raises:
      UserError: one is not.
    """
    return validate.whole(path, values, "owner", remedy=FETCH_AGAIN)


def same_length(**paths_and_arrays: tuple[Path, np.ndarray]) -> None:
    """Refuses arrays that should tell about the same examples and do not.

    Args:
      **paths_and_arrays: by what they are, such as images and labels, the file and the array.

    Raises:
      UserError: their numbers differ.
    """
    (first, (path, array)), *others = paths_and_arrays.items()
    for what, (other_path, other) in others:
        if len(other) != len(array):
            raise UserError(
                f"{path} holds {len(array)} {first} but {other_path} {len(other)} {what}: "
                "fetch both files again from one source."
            )


def labels_below(path: Path, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns labels as int32, having found them to be whole numbers in `[0, num_classes)`.

    Raises:
      UserError: one is outside.
    """
    return validate.labels(path, labels, num_classes)
