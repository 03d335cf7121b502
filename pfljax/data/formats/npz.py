"""Files of federated data sets: compressed `.npz` with the keys of `layout.py`."""

from __future__ import annotations

import numpy as np

from pfljax.data import reading
from pfljax.data.dataset import FederatedDataset
from pfljax.data.formats import layout, refusals
from pfljax.errors import UserError

_WRITE_AGAIN = "write it again with save_npz"
_CORRECT = "correct these arrays and write the file again with save_npz"


def save_npz(path: str, dataset: FederatedDataset) -> None:
    """Writes a federated data set to one compressed file that `load_npz` reads.

    Args:
      path: The file to write, with exactly this name; an existing one is replaced.
      dataset: The data set; numbers of 8 bytes are converted to float32 or int32, in which devices
        compute. Items are copied for each example, and groups of clients are not saved.

    Raises:
      UserError: The file cannot be written, or `load_npz` would refuse it: see `layout.py`.
    """
    remedy = "correct the data set before saving it"
    where = f"The data set {dataset.name}"
    arrays = layout.to_arrays(dataset.gathered())
    arrays = layout.to_arrays(layout.from_arrays(where, arrays, remedy))
    try:
        # With an open file, NumPy does not add a suffix to the name.
        with refusals.given(path, "a file to write").open("wb") as file:
            np.savez_compressed(file, **arrays)
            packed = file.tell()
            if sum(array.nbytes for array in arrays.values()) > reading.most_bytes(packed):
                # Nearly all zeros: compressed, it would look like a file made to exhaust memory.
                file.seek(0)
                file.truncate()
                np.savez(file, **arrays)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}): choose a file in an existing directory."
        ) from error


def load_npz(path: str) -> FederatedDataset:
    """Returns the federated data set in a file of pfljax's format.

    Args:
      path: A file written by `save_npz`, or another one with the same keys.

    Returns:
      The federated data set.

    Raises:
      UserError: The file is missing, damaged or inconsistent.
    """
    file = refusals.given(path, "an .npz file in pfljax's format")
    return layout.from_arrays(file, layout.read(file, _WRITE_AGAIN), _CORRECT)
