"""Where a data set's files lie, and what is inside them; whatever is wrong costs one sentence."""

from __future__ import annotations

import gzip
import io
import lzma
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.io

from pfljax.errors import UserError

_PACKED = ("", ".gz", ".xz")
_GZIP_START = b"\x1f\x8b"
_XZ_START = b"\xfd7zXZ\x00"
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
      UserError: the file cannot be read, or is truncated, damaged or of a wrong checksum.
    """
    try:
        content = path.read_bytes()
        # Browsers unpack some downloads silently, so the content decides and not the name.
        if content.startswith(_GZIP_START):
            return gzip.decompress(content)
        if content.startswith(_XZ_START):
            return lzma.decompress(content)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path} is a truncated or damaged gzip file: {FETCH_AGAIN}.") from error
    except lzma.LZMAError as error:
        raise UserError(f"{path} is a truncated or damaged xz file: {FETCH_AGAIN}.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check the file.") from error
    return content


def read_matlab(path: Path, *keys: str) -> list[np.ndarray]:
    """Returns arrays of a MATLAB file by their names.

    Raises:
      UserError: it is damaged, or lacks one of them.
    """
    try:
        content = scipy.io.loadmat(io.BytesIO(read(path)))
        return [content[key] for key in keys]
    except UserError:
        raise
    except Exception as error:  # Damaged files fail in nearly every way there is.
        raise UserError(
            f"{path} is damaged or no MATLAB file of {' and '.join(keys)}: {FETCH_AGAIN}."
        ) from error


def read_text(path: Path) -> str:
    """Returns a text file's content, unpacked if it is gzip or xz.

    Raises:
      UserError: the file cannot be read, or is no UTF-8.
    """
    try:
        return read(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8: {FETCH_AGAIN}.") from error


def read_array(path: Path, shape: tuple[int | None, ...]) -> np.ndarray:
    """Returns the array of numbers in an .npy file, packed or plain.

    Args:
      path: the file.
      shape: that it must have; None where any length will do.

    Raises:
      UserError: the file cannot be read, is damaged, or holds another kind of array.
    """
    try:
        array = np.lib.format.read_array(io.BytesIO(read(path)), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UserError(
            f"{path} is truncated, damaged or no .npy of numbers: {FETCH_AGAIN}."
        ) from error
    fits = len(array.shape) == len(shape) and all(
        want in (None, has) for want, has in zip(shape, array.shape, strict=True)
    )
    if not fits or array.dtype.kind not in "biuf":
        wanted = "x".join("n" if length is None else str(length) for length in shape)
        raise UserError(
            f"{path} holds an array of shape {array.shape} and dtype {array.dtype} where numbers "
            f"of shape {wanted} are expected: {FETCH_AGAIN}."
        )
    return array


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
    whole = labels.dtype.kind in "iu" or np.array_equal(labels, np.round(labels))
    outside = (labels < 0) | (labels >= num_classes)
    if not whole or outside.any():
        wrong = labels[outside][0] if outside.any() else "that is no whole number"
        raise UserError(
            f"{path} holds the label {wrong} where labels are 0 to {num_classes - 1}: "
            "put the original file there."
        )
    return labels.astype(np.int32)
