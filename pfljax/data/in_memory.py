"""Data sets that Python code passes to a run, in place of the name of a data set.

The config of such a run has `data.name='python'` and in `data.checksum` the checksum of the data
set, so that the run is never resumed or evaluated with another one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator

import jax
import numpy as np

from pfljax.data.dataset import FederatedDataset
from pfljax.errors import UserError

NAME = "python"

_AVAILABLE: dict[str, FederatedDataset] = {}


def checksum(dataset: FederatedDataset) -> str:
    """Returns a checksum of a data set: 32 hexadecimal digits.

    Example:
      >>> from pfljax.data import load
      >>> one, other = (load(name="digits", seed=seed) for seed in (0, 1))
      >>> checksum(one) == checksum(load(name="digits", seed=0)), checksum(one) == checksum(other)
      (True, False)
    """
    found = hashlib.blake2b(digest_size=16)
    leaves, structure = jax.tree.flatten(dataset)
    found.update(json.dumps(str(structure)).encode())
    for leaf in leaves:
        array = np.ascontiguousarray(leaf)
        found.update(f"{array.dtype.str} {array.shape} ".encode())
        if array.dtype == object:
            found.update(repr(array.tolist()).encode())
        else:
            found.update(array.reshape(-1).view(np.uint8))
    return found.hexdigest()


@contextlib.contextmanager
def available(dataset: FederatedDataset) -> Iterator[str]:
    """Lets `load` find a data set by its checksum, which is yielded."""
    key = checksum(dataset)
    before = _AVAILABLE.get(key)
    _AVAILABLE[key] = dataset
    try:
        yield key
    finally:
        if before is None:
            del _AVAILABLE[key]


def find(key: str) -> FederatedDataset:
    """Returns the data set with a checksum.

    Raises:
      UserError: It is not available.
    """
    if key not in _AVAILABLE:
        raise UserError(
            "The data set of this run was passed from Python and is in no file: pass it again, as "
            "in pfljax.open_run(workdir, data)."
        )
    return _AVAILABLE[key]
