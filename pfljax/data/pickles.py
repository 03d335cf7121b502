"""Pickles of arrays, read so that nothing in them can run."""

from __future__ import annotations

import io
import pickle
import pickletools
from typing import Any

import numpy as np

# Batches of CIFAR remember some 20,000 objects, one for each file name.
_MOST_REMEMBERED = 2**20


def _latin1(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes into a pickle that Python 2 can read; no other codec may be named.

    Raises:
      pickle.UnpicklingError: another one is.
    """
    if encoding != "latin1" or not isinstance(text, str):
        raise pickle.UnpicklingError(f"_codecs.encode with {encoding!r:.40}")
    return text.encode("latin1")


def _from_buffer(buffer: Any, dtype: np.dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    """How protocol 5 holds an array; NumPy refuses a dtype of objects here."""
    return np.frombuffer(buffer, dtype).reshape(shape, order=order).copy()


class _ArrayUnpickler(pickle.Unpickler):
    """Rebuilds NumPy arrays and plain Python values, and can call nothing else.

    The functions are handed out by reference instead of being imported by name, so that files
    written by an older or newer NumPy, whose modules have other names, are read as well.
    """

    _ALLOWED = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): _latin1,
        **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
        **{
            (f"numpy.{core}.multiarray", builder.__name__): builder
            for core in ("core", "_core")
            for builder in (np.empty(0).__reduce__()[0], np.float32(0).__reduce__()[0])
        },
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name}") from None


def load_arrays(content: bytes, **options: Any) -> Any:
    """Returns the arrays and plain Python values in a pickle.

    Args:
      content: of the pickle.
      **options: of `pickle.Unpickler`.

    Raises:
      pickle.UnpicklingError: it names something that could run.
      Exception: bytes that are no pickle fail in nearly every way there is.
    """
    for operation, argument, _ in pickletools.genops(content):
        # The C reader allocates a slot for every number up to the largest.
        if "PUT" in operation.name and int(argument) > _MOST_REMEMBERED:
            raise ValueError(f"object number {argument}")
    return _ArrayUnpickler(io.BytesIO(content), **options).load()
