"""Readers of untrusted files with limits on memory and time.

A compressed file of a megabyte can unpack to gigabytes, a header of a hundred bytes can claim
terabytes, and a pipe with the name of an image never ends. All files of the user are opened here,
so that each of these cases gives a one-line error.
"""

from __future__ import annotations

import errno
import gzip
import io
import json
import lzma
import math
import stat
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pfljax.errors import UserError

# A compressed file may unpack to this many bytes, and a large one to this many times its own size:
# images, texts and tables compress 2 to 50 times, files made to exhaust memory 1000 times.
LARGEST_UNPACKED = 2**30
LARGEST_RATIO = 200
_GZIP_START = b"\x1f\x8b"
_XZ_START = b"\xfd7zXZ\x00"
_BLOCK = 2**20
_ENCRYPTED = 0x1  # in the flags of a member of a zip file
# The exceptions of zip files, besides OSError, for damaged or unsupported archives.
_DAMAGED_ZIP = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError),
    *(RuntimeError, ValueError, KeyError, IndexError, OverflowError),
)


def most_bytes(packed: int) -> int:
    """Returns the number of bytes that a file may unpack to.

    Args:
      packed: The size of the file in bytes.
    """
    return max(LARGEST_UNPACKED, LARGEST_RATIO * packed)


def bomb(path: Path | str, limit: int, remedy: str) -> UserError:
    """Returns the error for a file that unpacks to far more than it should.

    Args:
      path: The file, or a description of a part of it.
      limit: Number of bytes that it may unpack to.
      remedy: The advice that ends the error message.
    """
    return UserError(
        f"{path} unpacks to more than {limit:,} bytes, which no file of its size should: {remedy}."
    )


def open_regular(path: Path) -> BinaryIO:
    """Opens a file for reading, unless it is a pipe, a socket or a device, which may never end.

    Raises:
      OSError: The file cannot be opened, or is not a regular file.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        code = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        reason = "it is a directory" if stat.S_ISDIR(mode) else "it is not a regular file"
        raise OSError(code, reason, str(path))
    return path.open("rb")


def content(path: Path, remedy: str) -> bytes:
    """Returns the content of a file, decompressed if it is gzip or xz.

    Args:
      path: The file.
      remedy: The advice for a damaged file, which ends the error message.

    Raises:
      UserError: The file cannot be read, is truncated or damaged, has a wrong checksum, or unpacks
        to far more than it should.
    """
    kind = "gzip"
    try:
        with open_regular(path) as file:
            packed = file.read()
        # Browsers decompress some downloads silently, so the content decides, not the name.
        limit = most_bytes(len(packed))
        if packed.startswith(_GZIP_START):
            with gzip.GzipFile(fileobj=io.BytesIO(packed)) as stream:
                unpacked = _read_at_most(stream, limit)
        elif packed.startswith(_XZ_START):
            kind = "xz"
            with lzma.LZMAFile(io.BytesIO(packed)) as stream:
                unpacked = _read_at_most(stream, limit)
        else:
            return packed
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{path} is a truncated or damaged {kind} file: {remedy}.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check the file.") from error
    except MemoryError as error:
        raise too_large(path) from error
    if unpacked is None:
        raise bomb(path, limit, remedy)
    return unpacked


def too_large(what: Path | str) -> UserError:
    """Returns the error for data that need more memory than available."""
    return UserError(f"{what} needs more memory than available: use fewer data, or more memory.")


def _read_at_most(stream: Any, limit: int) -> bytes | None:
    """Returns all of a stream; None if it is longer than `limit`."""
    pieces, total = [], 0
    while piece := stream.read(_BLOCK):
        total += len(piece)
        if total > limit:
            return None
        pieces.append(piece)
    return b"".join(pieces)


def unpacked_size(packed: bytes, limit: int) -> int:
    """Counts the bytes that a zlib stream unpacks to, without keeping them.

    Args:
      packed: The stream.
      limit: The count at which to stop.

    Raises:
      zlib.error: The stream is damaged.
    """
    stream, total = zlib.decompressobj(), 0
    while packed and not stream.eof and total <= limit:
        total += len(stream.decompress(packed, _BLOCK))
        packed = stream.unconsumed_tail
    return total


def members(
    path: Path, wanted: Callable[[str], bool] | Iterable[str], remedy: str
) -> Iterator[tuple[str, bytes]]:
    """Yields name and content of the selected members of a zip archive, in the order of names.

    Args:
      path: The archive.
      wanted: The names of the members, or a predicate on names.
      remedy: The advice for a damaged archive, which ends the error message.

    Raises:
      UserError: The archive cannot be read, is truncated, damaged or encrypted, has a wrong
        checksum, or unpacks to far more than it should.
    """
    chosen = wanted if callable(wanted) else frozenset(wanted).__contains__
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            limit = most_bytes(path.stat().st_size)
            infos = {info.filename: info for info in archive.infolist() if chosen(info.filename)}
            if sum(info.file_size for info in infos.values()) > limit:
                raise bomb(path, limit, remedy)
            for name in sorted(infos):
                if infos[name].flag_bits & _ENCRYPTED:
                    raise UserError(
                        f"{path} is encrypted (at least {name}): unpack it with its password and "
                        "pack it again without one."
                    )
                # At most the size in the member's header is read, which was checked above.
                yield name, archive.read(infos[name])
    except _DAMAGED_ZIP as error:
        raise UserError(f"{path} is a truncated or damaged zip file: {remedy}.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check its path.") from error
    except MemoryError as error:
        raise too_large(path) from error


def npy_header(stream: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Returns shape, whether the order is Fortran's, dtype and data offset of an `.npy`.

    Args:
      stream: The stream, at its start.

    Raises:
      ValueError: The header is damaged or unsupported.
    """
    try:
        # Headers are Python literals, whose parser warns or fails in many ways.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if np.lib.format.read_magic(stream) == (1, 0):
                found = np.lib.format.read_array_header_1_0(stream)
            else:
                found = np.lib.format.read_array_header_2_0(stream)
    except Exception as error:
        raise ValueError("a damaged header") from error
    shape, fortran, dtype = found
    if any(length < 0 for length in shape):
        raise ValueError(f"the shape {shape}")
    return shape, fortran, dtype, stream.tell()


def npy(content: bytes) -> np.ndarray:
    """Returns the plain array in the content of an `.npy` file, without executing anything.

    Args:
      content: The whole file; its length bounds the allocation.

    Raises:
      ValueError: The file is damaged, contains objects, or its header contradicts its length.
    """
    stream = io.BytesIO(content)
    shape, fortran, dtype, start = npy_header(stream)
    count = math.prod(shape)
    if dtype.hasobject:
        raise ValueError("objects")
    if start + count * dtype.itemsize != len(content):
        raise ValueError(
            f"{len(content) - start} bytes where its header claims {count * dtype.itemsize}"
        )
    if count * dtype.itemsize == 0:
        return np.zeros(shape, dtype)
    # A copy, since an array on top of bytes is read-only.
    array = np.frombuffer(content, dtype, count, offset=start).copy()
    return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)


def npy_map(path: Path) -> np.ndarray:
    """Returns the plain array in an `.npy` file, memory-mapped.

    Raises:
      OSError: The file cannot be read.
      ValueError: The file is damaged, or its header contradicts its length.
    """
    with open_regular(path) as file:
        shape, fortran, dtype, start = npy_header(file)
    promised = start + math.prod(shape) * dtype.itemsize
    if dtype.hasobject or promised != path.stat().st_size:
        raise ValueError(f"{path.stat().st_size} bytes where its header claims {promised}")
    order = "F" if fortran else "C"
    return np.memmap(path, dtype, mode="r", offset=start, shape=shape, order=order)


def parse_json(text: str) -> Any:
    """Returns the content of a JSON text.

    Raises:
      ValueError: The text is not JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
