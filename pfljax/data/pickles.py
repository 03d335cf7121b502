"""Pickles of arrays, read without executing anything in them."""

from __future__ import annotations

import io
import pickle
import pickletools
from typing import Any

import numpy as np

# Batches of CIFAR memoize some 20,000 objects, one for each file name.
_MOST_REMEMBERED = 2**20


def _latin1(text: str, encoding: str) -> bytes:
    """Decodes bytes in a pickle that Python 3 wrote for Python 2; other codecs are refused.

    Raises:
      pickle.UnpicklingError: The pickle names another codec.
    """
    if encoding != "latin1" or not isinstance(text, str):
        raise pickle.UnpicklingError(f"_codecs.encode with {encoding!r:.40}")
    return text.encode("latin1")


def _from_buffer(buffer: Any, dtype: np.dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    """Rebuilds an array of protocol 5; NumPy refuses dtypes of objects."""
    return np.frombuffer(buffer, dtype).reshape(shape, order=order).copy()


class _ArrayUnpickler(pickle.Unpickler):
    """Rebuilds NumPy arrays and plain Python values, and can call nothing else.

    The functions are looked up in a fixed table instead of being imported by name, so that files
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
      content: The content of the pickle.
      **options: Options of `pickle.Unpickler`.

    Raises:
      pickle.UnpicklingError: The pickle names an object that could execute code.
      Exception: The bytes are not a pickle; these fail in many ways.
    """
    for operation, argument, _ in pickletools.genops(content):
        # The C reader allocates a slot for every index up to the largest.
        if "PUT" in operation.name and int(argument) > _MOST_REMEMBERED:
            raise ValueError(f"object number {argument}")
    return _ArrayUnpickler(io.BytesIO(content), **options).load()
