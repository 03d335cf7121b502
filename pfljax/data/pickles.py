"""Pickles of arrays, read so that nothing in them can run."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np


class ArrayUnpickler(pickle.Unpickler):
    """Rebuilds NumPy arrays and plain Python values, and can call nothing else.

    The functions are handed out by reference instead of being imported by name, so that files
    written by an older or newer NumPy, whose modules have other names, are read as well.
    """

    _ALLOWED = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
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
