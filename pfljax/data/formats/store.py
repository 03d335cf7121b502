"""Federated data sets larger than memory: directories whose examples stay on disk.

    inputs.npy, targets.npy     the examples, memory-mapped; inputs.NAME.npy for each array of
                                inputs that are a dict
    clients.npz                 all other keys of `layout.py`

With `config.engine.residence='host'` only the rows of a cohort are read; with 'device' all rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pfljax.data import checks, input_arrays, reading, validate
from pfljax.data.dataset import FederatedDataset
from pfljax.data.examples import Examples
from pfljax.data.formats import layout, refusals
from pfljax.data.input_arrays import Inputs, map_inputs
from pfljax.errors import UserError

_EXAMPLES = ("inputs", "targets")
_CLIENTS = "clients.npz"
_OTHERS = ("mean", "std", *layout.OPTIONAL)
_REMEDY = "write it again with StoreWriter"


def _examples_in(directory: Path) -> dict[str, Path]:
    """Returns the files of examples in a directory, by their keys."""
    files = {file.name.removesuffix(".npy"): file for file in sorted(directory.glob("*.npy"))}
    return {
        key: file
        for key, file in files.items()
        if key.partition(input_arrays.SEPARATOR)[0] in _EXAMPLES
    }


class _Rows:
    """An `.npy` file that grows; its header is large enough for any number of rows."""

    def __init__(self, file: Path):
        self._path, self._file, self._form, self.count = file, None, None, 0

    def require_form(self, rows: np.ndarray) -> None:
        """Refuses rows of another shape or dtype than those in the file."""
        form = rows.shape[1:], rows.dtype
        if self._form is not None and form != self._form:
            shape, dtype = self._form
            raise UserError(
                f"{self._path} has examples of shape {shape} and dtype {dtype}, but one of shape "
                f"{form[0]} and dtype {form[1]} was added; give all examples the same."
            )

    def append(self, rows: np.ndarray) -> None:
        """Writes rows behind those in the file."""
        if self._file is None:
            self._file: BinaryIO | None = self._path.open("wb")
            self._form = rows.shape[1:], rows.dtype
            self._write_header()
        self._file.write(np.ascontiguousarray(rows).tobytes())
        self.count += len(rows)

    def _write_header(self) -> None:
        shape, dtype = self._form
        description = np.lib.format.dtype_to_descr(dtype)
        header = {"descr": description, "fortran_order": False, "shape": (self.count, *shape)}
        np.lib.format.write_array_header_1_0(self._file, header)

    def close(self) -> None:
        if self._file is not None:
            self._file.seek(0)
            self._write_header()
            self._file.close()


class StoreWriter:
    """Writes a federated data set client by client, with one client in memory at a time.

    Args:
      path: A directory; created if missing.
      name: The name of the data set in reports.
      num_classes: `C`; 0 for a regression.
      num_unseen: Number of held-out clients, which are the last ones.
      **others: `mean`, `std`, `task`, `vocabulary`, `target_mean`, `target_std`, `class_names`,
        `client_names` of a `FederatedDataset`.

    Example:
      >>> import tempfile
      >>> directory = tempfile.mkdtemp()
      >>> with StoreWriter(directory, name='tiny', num_classes=2) as store:
      ...     for _ in range(3):
      ...         store.add(np.zeros((5, 4), np.uint8), np.array([0, 1, 0, 1, 1]), train=3)
      >>> load_store(directory).test.sizes
      array([2, 2, 2], dtype=int32)
    """

    def __init__(
        self, path: str, *, name: str, num_classes: int, num_unseen: int = 0, **others: Any
    ):
        for key in others:
            checks.choice("argument of StoreWriter", key, _OTHERS)
        self._directory = refusals.given(path, "a directory to write")
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{path} cannot be written ({error.strerror}): choose another directory."
            ) from error
        # Removed first, so that an interrupted writer does not leave a stale index.
        (self._directory / _CLIENTS).unlink(missing_ok=True)
        for file in _examples_in(self._directory).values():
            file.unlink()  # Of an earlier data set, whose inputs may have other names.
        self._rows: dict[str, _Rows] = {}
        self._about = {"name": name, "num_classes": num_classes, "num_unseen": num_unseen, **others}
        self._sizes: list[tuple[int, int, int]] = []

    def add(self, inputs: Inputs, targets: np.ndarray, *, train: int, validation: int = 0) -> None:
        """Adds a client.

        Args:
          inputs: `[n, ...]`, its training examples, then its validation and its test examples;
            one array, or a dict of arrays with the same names for all clients.
          targets: `[n, ...]`, the targets of these examples.
          train: Number of training examples.
          validation: Number of validation examples; the others are test examples. A client without
            test examples is trained, but not scored.

        Raises:
          UserError: The examples do not match each other, those of other clients or the task; the
            client is then not added.
        """
        inputs = map_inputs(np.asarray, inputs)
        lengths = {len(array) for array in input_arrays.by_name(inputs).values()}
        rest = len(targets) - train - validation
        if lengths != {len(targets)} or train < 1 or min(validation, rest) < 0:
            raise UserError(
                f"Client {len(self._sizes)} has {max(lengths, default=0)} inputs and "
                f"{len(targets)} targets, "
                f"{train} for training and {validation} for validation; pass as many inputs as "
                "targets, with at least one for training."
            )
        about = {key: self._about[key] for key in ("task", "vocabulary") if key in self._about}
        pool = validate.examples(
            Examples(
                self._about["name"],
                inputs,
                np.asarray(targets),
                self._about["num_classes"],
                **about,
            ),
            f"Client {len(self._sizes)} of {self._directory}",
            part_of_store=True,
        )
        arrays = {**input_arrays.to_keys("inputs", pool.inputs), "targets": pool.targets}
        if self._sizes and arrays.keys() != self._rows.keys():
            raise UserError(
                f"{self._directory} holds {', '.join(self._rows)}, and a client with "
                f"{', '.join(arrays)} was added; give the inputs of all clients the same names."
            )
        for key in arrays.keys() - self._rows.keys():
            self._rows[key] = _Rows(self._directory / f"{key}.npy")
        # All of them before any is written, since a client is added as a whole or not at all.
        for key, rows in arrays.items():
            self._rows[key].require_form(rows)
        for key, rows in arrays.items():
            self._rows[key].append(rows)
        self._sizes.append((train, validation, rest))

    def close(self) -> None:
        """Writes the index of the clients; without it the directory is not a valid data set."""
        for rows in self._rows.values():
            rows.close()
        sizes = np.array(self._sizes, np.int64).reshape(-1, 3)
        ends = np.cumsum(sizes.ravel()).reshape(-1, 3)
        if len(ends) and ends[-1, -1] >= 2**31:
            raise UserError(f"{self._directory} has {ends[-1, -1]} rows; at most 2**31 - 1 fit.")
        offsets = (ends - sizes).astype(np.int32)
        splits = {
            f"{split}_{part}": column
            for number, split in enumerate(validate.SPLITS)
            for part, column in (
                ("offsets", offsets[:, number]),
                ("sizes", sizes[:, number].astype(np.int32)),
            )
        }
        about = {"mean": 0.0, "std": 1.0, "task": "classification", **self._about}
        forms = dict.fromkeys(("num_classes", "num_unseen", "vocabulary"), np.int32)
        forms |= dict.fromkeys(("name", "task", *layout.NAMES), str)
        others = {
            name: np.array(one, forms.get(key, np.float64))
            for key, value in about.items()
            for name, one in input_arrays.to_keys(key, value).items()
        }
        np.savez(self._directory / _CLIENTS, **splits, **others)

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind is None:
            self.close()
        else:
            for rows in self._rows.values():
                rows.close()


def load_store(path: str) -> FederatedDataset:
    """Returns the federated data set in a directory, with memory-mapped examples.

    Args:
      path: A directory written by `StoreWriter`.

    Returns:
      The federated data set, with inputs and targets on disk. Inputs other than bytes are read
      once to be validated; beyond a gigabyte, a sample of them.

    Raises:
      UserError: A file is missing, damaged or contradicts another one.
    """
    directory = refusals.given(path, "a directory in pfljax's format")
    arrays = layout.read(directory / _CLIENTS, _REMEDY)
    found = _examples_in(directory)
    for key, file in ({key: directory / f"{key}.npy" for key in _EXAMPLES} | found).items():
        if key == "inputs" and key not in found and len(found) > 1:
            continue  # The inputs are a dict.
        try:
            arrays[key] = reading.npy_map(file)
        except OSError as error:
            raise refusals.unreadable(file, error) from error
        except ValueError as error:
            raise UserError(f"{file} is truncated or damaged ({error}): {_REMEDY}.") from error
    return layout.from_arrays(directory, arrays, _REMEDY)
