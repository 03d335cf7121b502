"""Files that somebody else wrote, read within bounds whatever they claim to hold.

A packed file of a megabyte can unpack to gigabytes, a header of a hundred bytes can ask for
terabytes, and a pipe that has the name of an image never ends. Everything that opens a file of the
user's does it here, so that each of these costs one sentence.
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

# A packed file may unpack to this many bytes, and a large one to this many times its own size:
# images, texts and tables pack 2 to 50 times, and files made to exhaust memory 1000 times.
LARGEST_UNPACKED = 2**30
LARGEST_RATIO = 200
_GZIP_START = b"\x1f\x8b"
_XZ_START = b"\xfd7zXZ\x00"
_BLOCK = 2**20
_ENCRYPTED = 0x1  # in the flags of a member of a zip file
# What zip files raise, beside OSError, where they are damaged or packed in an unknown way.
_DAMAGED_ZIP = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError),
    *(RuntimeError, ValueError, KeyError, IndexError, OverflowError),
)


def most_bytes(packed: int) -> int:
    """Returns how many bytes a file may unpack to.

    Args:
      packed: its size.
    """
    return max(LARGEST_UNPACKED, LARGEST_RATIO * packed)


def bomb(path: Path | str, limit: int, remedy: str) -> UserError:
    """Returns the sentence for a file that unpacks to far more than it should.

    Args:
      path: the file, and perhaps which part of it.
      limit: bytes that it may unpack to.
      remedy: what to do, as the end of a sentence.
    """
    return UserError(
        f"{path} unpacks to more than {limit:,} bytes, which no file of its size should: {remedy}."
    )


def open_regular(path: Path) -> BinaryIO:
    """Opens a file to read bytes, unless it is a pipe, a socket or a device, which may never end.

    Raises:
      OSError: it cannot be opened, or is none of those that end.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        code = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        reason = "it is a directory" if stat.S_ISDIR(mode) else "it is no regular file"
        raise OSError(code, reason, str(path))
    return path.open("rb")


def content(path: Path, remedy: str) -> bytes:
    """Returns a file's content, unpacked if it is gzip or xz.

    Args:
      path: the file.
      remedy: what to do about a damaged one, as the end of a sentence.

    Raises:
      UserError: the file cannot be read, is truncated, damaged or of a wrong checksum, or unpacks
        to far more than it should.
    """
    kind = "gzip"
    try:
        with open_regular(path) as file:
            packed = file.read()
        # Browsers unpack some downloads silently, so the content decides and not the name.
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
    """Returns the sentence for something that asks for more memory than there is."""
    return UserError(f"{what} needs more memory than there is: take less of it, or more memory.")


def _read_at_most(stream: Any, limit: int) -> bytes | None:
    """Returns all of a stream; None where it is longer than `limit`."""
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
      packed: the stream.
      limit: the count ends above it.

    Raises:
      zlib.error: it is damaged.
    """
    stream, total = zlib.decompressobj(), 0
    while packed and not stream.eof and total <= limit:
        total += len(stream.decompress(packed, _BLOCK))
        packed = stream.unconsumed_tail
    return total


def members(
    path: Path, wanted: Callable[[str], bool] | Iterable[str], remedy: str
) -> Iterator[tuple[str, bytes]]:
    """Yields name and content of a zip archive's wanted members, in the order of their names.

    Args:
      path: the archive.
      wanted: the names, or whether to yield a member, by its name.
      remedy: what to do about a damaged one, as the end of a sentence.

    Raises:
      UserError: the archive cannot be read, is truncated, damaged, encrypted or of a wrong
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
                        f"{path} is encrypted, {name} at least: unpack it with its password and "
                        "pack it again without."
                    )
                # No more is read than the member's header says, which was checked.
                yield name, archive.read(infos[name])
    except _DAMAGED_ZIP as error:
        raise UserError(f"{path} is a truncated or damaged zip file: {remedy}.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): check its path.") from error
    except MemoryError as error:
        raise too_large(path) from error


def npy_header(stream: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Returns shape, whether columns come first, dtype, and where the numbers begin in an `.npy`.

    Args:
      stream: at its beginning.

    Raises:
      ValueError: it is damaged, or of another form.
    """
    try:
        # Headers are Python literals, which warn or fail in nearly every way there is.
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
    """Returns the plain array in the content of an `.npy` file, of which nothing can run.

    Args:
      content: of the whole file; its length bounds what is allocated.

    Raises:
      ValueError: it is damaged, holds objects, or its header promises other than follows.
    """
    stream = io.BytesIO(content)
    shape, fortran, dtype, start = npy_header(stream)
    count = math.prod(shape)
    if dtype.hasobject:
        raise ValueError("objects")
    if start + count * dtype.itemsize != len(content):
        raise ValueError(
            f"{len(content) - start} bytes where its header promises {count * dtype.itemsize}"
        )
    if count * dtype.itemsize == 0:
        return np.zeros(shape, dtype)
    # A copy, since an array of bytes cannot be written to.
    array = np.frombuffer(content, dtype, count, offset=start).copy()
    return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)


def npy_map(path: Path) -> np.ndarray:
    """Returns the plain array in an `.npy` file, memory-mapped.

    Raises:
      OSError: the file cannot be read.
      ValueError: it is damaged, or its header promises other than follows.
    """
    with open_regular(path) as file:
        shape, fortran, dtype, start = npy_header(file)
    promised = start + math.prod(shape) * dtype.itemsize
    if dtype.hasobject or promised != path.stat().st_size:
        raise ValueError(f"{path.stat().st_size} bytes where its header promises {promised}")
    order = "F" if fortran else "C"
    return np.memmap(path, dtype, mode="r", offset=start, shape=shape, order=order)


def parse_json(text: str) -> Any:
    """Returns what a JSON text holds.

    Raises:
      ValueError: it is no JSON, or nested deeper than anybody writes.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
