"""pfljax's own file of a federated data set: a compressed `.npz` with the keys of `layout.py`."""

from __future__ import annotations

import numpy as np

from pfljax.data import reading
from pfljax.data.dataset import FederatedDataset
from pfljax.data.formats import layout, refusals
from pfljax.errors import UserError

_WRITE_AGAIN = "write it again with save_npz"
_CORRECT = "correct these arrays and write the file again with save_npz"


def save_npz(path: str, dataset: FederatedDataset) -> None:
    """Writes a federated data set as one compressed file that `load_npz` reads back.

    Args:
      path: the file to write, its name used as it is; an existing one is replaced.
      dataset: what to write; numbers of 8 bytes become float32 or int32, in which devices compute,
        and all else stays as it is.

    Raises:
      UserError: the file cannot be written, or `load_npz` would refuse it: see `layout.py`.
    """
    remedy = "correct the data set before it is saved"
    where = f"The data set {dataset.name}"
    arrays = layout.to_arrays(layout.from_arrays(where, layout.to_arrays(dataset), remedy))
    try:
        # An open file keeps NumPy from adding a suffix to the name the user gave.
        with refusals.given(path, "a file to write").open("wb") as file:
            np.savez_compressed(file, **arrays)
            packed = file.tell()
            if sum(array.nbytes for array in arrays.values()) > reading.most_bytes(packed):
                # Nearly all zeros: packed, it would look like a file made to exhaust memory.
                file.seek(0)
                file.truncate()
                np.savez(file, **arrays)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}): choose a file in an existing directory."
        ) from error


def load_npz(path: str) -> FederatedDataset:
    """Returns the federated data set in a file of pfljax's own layout.

    Args:
      path: a file that `save_npz` wrote, or another of the same keys.

    Returns:
      The federated data set.

    Raises:
      UserError: the file is absent, damaged or inconsistent.
    """
    file = refusals.given(path, "an .npz file in pfljax's layout")
    return layout.from_arrays(file, layout.read(file, _WRITE_AGAIN), _CORRECT)
