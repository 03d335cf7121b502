"""Federated data sets from tables: pandas frames, CSV and Parquet files, Hugging Face directories.

A row of a table is an example; one column names its client, one is its target, and the others are
its inputs. pandas and pyarrow read the files.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from pfljax.data import checks, reading
from pfljax.data.arrays import from_arrays
from pfljax.data.dataset import FederatedDataset
from pfljax.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

# Columns of the inputs: one or several, which become one array, or a dict of such for inputs that
# are several arrays.
Columns = str | Sequence[str] | Mapping[str, str | Sequence[str]]

# An integer of this size is exact in float32, in which numeric inputs are stored.
_LARGEST_EXACT = 2**24


def from_frame(
    frame: pd.DataFrame,
    *,
    target: str,
    client: str,
    inputs: Columns | None = None,
    name: str = "own",
    **options: Any,
) -> FederatedDataset:
    """Returns a federated data set made of a pandas frame, a row for each example.

    Args:
      frame: The table.
      target: The column of the targets.
      client: The column that names the client of each example.
      inputs: The columns of the inputs: numbers, or a single column whose cells are arrays of one
        shape. None means all other columns. A dict of columns makes inputs that are a dict of
        arrays.
      name: The name of the data set in reports.
      **options: As for `from_arrays`, such as `task`, `vocabulary`, `test_fraction` or `seed`.

    Returns:
      The federated data set.

    Raises:
      UserError: A column is missing, has missing values, or is not numeric; and as for
        `from_arrays`.

    Example:
      >>> import pandas as pd
      >>> frame = pd.DataFrame({
      ...     "age": [20, 31, 45, 28], "height": [1.7, 1.8, 1.6, 1.9],
      ...     "smokes": ["no", "yes", "no", "yes"], "clinic": ["A", "A", "B", "B"]})
      >>> made = from_frame(frame, target="smokes", client="clinic", validation_fraction=0.0)
      >>> made.inputs.shape, made.class_names, made.client_names
      ((4, 2), ('no', 'yes'), ('A', 'B'))
    """
    where = f"The table of {name}"
    columns = list(map(str, frame.columns))
    for repeated in {column for column in columns if columns.count(column) > 1}:
        raise UserError(f"{where} has two columns {repeated!r}: rename one of them.")
    frame = frame.set_axis(columns, axis="columns")
    if inputs is None:
        inputs = [column for column in columns if column not in (target, client)]
        if not inputs:
            raise UserError(f"{where} has no columns besides {target!r} and {client!r}.")
    wanted = inputs if isinstance(inputs, Mapping) else {"": inputs}
    groups = {key: [some] if isinstance(some, str) else list(some) for key, some in wanted.items()}
    for column in (target, client, *(column for group in groups.values() for column in group)):
        checks.choice(f"A column of {where[0].lower()}{where[1:]}", column, columns)
        missing = frame[column].isna()
        if missing.any():
            raise UserError(
                f"{where} has {int(missing.sum())} missing values in the column {column!r}, the "
                f"first in row {int(np.argmax(missing))}: fill them in, or drop these rows."
            )
    ids = options.get("vocabulary", ())
    arrays = {
        key: _array(where, frame, group, bool(ids.get(key) if isinstance(ids, Mapping) else ids))
        for key, group in groups.items()
    }
    targets, clients = _cells(frame[target]), _cells(frame[client])
    return from_arrays(
        arrays if isinstance(inputs, Mapping) else arrays[""],
        targets,
        clients,
        name=name,
        **options,
    )


def from_csv(
    path: str | Path, *, target: str, client: str, inputs: Columns | None = None, **options: Any
) -> FederatedDataset:
    """Returns a federated data set made of a CSV file with a header, a row for each example.

    Args:
      path: The file, compressed or not, as `pandas.read_csv` reads it.
      target: The column of the targets.
      client: The column that names the client of each example.
      inputs: The columns of the inputs; see `from_frame`.
      **options: As for `from_frame`; `name` is that of the file by default.

    Returns:
      The federated data set.

    Raises:
      UserError: The file cannot be read; and as for `from_frame`.

    Example:
      >>> import pathlib, tempfile
      >>> file = pathlib.Path(tempfile.mkdtemp()) / "steps.csv"
      >>> _ = file.write_text("x,y,user\\n1,0,ann\\n2,1,ann\\n3,0,bob\\n4,1,bob\\n")
      >>> from_csv(file, target="y", client="user", validation_fraction=0.0).client_names
      ('ann', 'bob')
    """
    import pandas as pd

    path = Path(path)
    try:
        frame = pd.read_csv(io.BytesIO(reading.content(path, "save it as CSV again")))
    except (ValueError, OSError, MemoryError) as error:  # of pandas' parser, too
        raise _unreadable(path, "CSV", error) from error
    return from_frame(
        frame, target=target, client=client, inputs=inputs, **{"name": path.stem, **options}
    )


def from_parquet(
    path: str | Path, *, target: str, client: str, inputs: Columns | None = None, **options: Any
) -> FederatedDataset:
    """Returns a federated data set made of a Parquet file, or of a directory of them.

    Args:
      path: The file, or the directory.
      target: The column of the targets.
      client: The column that names the client of each example.
      inputs: The columns of the inputs; see `from_frame`.
      **options: As for `from_frame`; `name` is that of the file by default.

    Returns:
      The federated data set.

    Raises:
      UserError: The file cannot be read; and as for `from_frame`.

    Example:
      >>> import pandas as pd, pathlib, tempfile
      >>> file = pathlib.Path(tempfile.mkdtemp()) / "steps.parquet"
      >>> frame = pd.DataFrame({"x": [1, 2, 3, 4], "y": [0, 1, 0, 1], "user": list("aabb")})
      >>> frame.to_parquet(file)
      >>> from_parquet(file, target="y", client="user", validation_fraction=0.0).num_clients
      2
    """
    path = Path(path)
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise UserError(f"{path} contains no .parquet file: check the path.")
    frame = _frame(_concatenated(path, [_parquet(file) for file in files]), path)
    return from_frame(
        frame, target=target, client=client, inputs=inputs, **{"name": path.stem, **options}
    )


def from_hugging_face(
    directory: str | Path,
    *,
    target: str,
    client: str,
    inputs: Columns | None = None,
    split: str | Sequence[str] = "train",
    **options: Any,
) -> FederatedDataset:
    """Returns a federated data set made of a data set directory of Hugging Face.

    The directory is one that `datasets` saved (`Dataset.save_to_disk`, `DatasetDict.save_to_disk`),
    or a clone of a repository with Parquet files. The package `datasets` is not needed. Images that
    are stored in the files are decoded, and class labels have their names.

    Args:
      directory: The directory.
      target: The column of the targets.
      client: The column that names the client of each example.
      inputs: The columns of the inputs; see `from_frame`.
      split: The split or splits of the directory whose rows are used. They are not those of the
        federated data set: each client has training and test examples of its own.
      **options: As for `from_frame`; `name` is that of the directory by default.

    Returns:
      The federated data set.

    Raises:
      UserError: The directory cannot be read, or has no such split; and as for `from_frame`.

    Example:
      >>> import pandas as pd, pathlib, tempfile
      >>> folder = pathlib.Path(tempfile.mkdtemp())
      >>> frame = pd.DataFrame({"x": [1, 2, 3, 4], "y": [0, 1, 0, 1], "user": list("aabb")})
      >>> frame.to_parquet(folder / "train-00000-of-00001.parquet")
      >>> options = {"target": "y", "client": "user", "validation_fraction": 0.0}
      >>> from_hugging_face(folder, **options).num_clients
      2
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"{directory} is not a directory: check the path.")
    splits = [split] if isinstance(split, str) else list(split)
    files = _files_of_splits(directory)
    for wanted in splits:
        checks.choice(f"A split of {directory}", wanted, files)
    tables = [
        (_parquet if file.suffix == ".parquet" else _arrow)(file)
        for wanted in splits
        for file in files[wanted]
    ]
    whole = _concatenated(directory, tables)
    frame = _frame(whole, directory)
    names = _class_names(whole).get(target, ())
    if names and options.get("task", "classification") == "classification":
        options = {"class_names": names, **options}
    return from_frame(
        frame, target=target, client=client, inputs=inputs, **{"name": directory.name, **options}
    )


def _cells(column: pd.Series) -> np.ndarray:
    """Returns the values of a column as NumPy has them: numbers, or strings."""
    if column.dtype.kind in "biuf":
        return column.to_numpy()
    values = column.tolist()
    if all(isinstance(value, str) for value in values):
        return np.array(values, object)
    return _stacked(values) if isinstance(values[0], list | np.ndarray) else np.asarray(values)


def _stacked(cells: Sequence[Any]) -> np.ndarray:
    """Returns `[n, ...]` of cells that are arrays, or lists of lists, of one shape.

    Raises:
      ValueError: Their shapes differ.
    """
    return np.stack([np.array(_nested(cell)) for cell in cells])


def _nested(cell: Any) -> Any:
    """Returns arrays of arrays, which Parquet files make of lists, as lists of lists."""
    if isinstance(cell, np.ndarray) and cell.dtype == object:
        return [_nested(one) for one in cell]
    return cell


def _array(where: str, frame: pd.DataFrame, columns: Sequence[str], are_ids: bool) -> np.ndarray:
    """Returns `[n, columns]`, or for a single column of arrays `[n, ...]`."""
    if len(columns) == 1 and frame[columns[0]].dtype.kind not in "biuf":
        cells = frame[columns[0]].tolist()
        if isinstance(cells[0], list | np.ndarray):
            try:
                return _stacked(cells)
            except ValueError as error:
                raise UserError(
                    f"{where} has arrays of different shapes in the column {columns[0]!r}: give "
                    "all of them one shape."
                ) from error
    for column in columns:
        if frame[column].dtype.kind not in "biuf":
            raise UserError(
                f"{where} has a column {column!r} that is not numeric: turn it into numbers, such "
                "as one column for each of its values, or leave it out with inputs=[...]."
            )
        large = frame[column].dtype.kind in "iu" and (frame[column].abs() > _LARGEST_EXACT).any()
        if large and not are_ids:
            raise UserError(
                f"{where} has whole numbers above {_LARGEST_EXACT} in the column {column!r}, which "
                "float32 rounds: scale them, leave the column out with inputs=[...], or pass "
                "vocabulary=... if they are ids."
            )
    return frame[list(columns)].to_numpy(np.int64 if are_ids else np.float32)


def _unreadable(path: Path, form: str, error: Exception) -> UserError:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return UserError(
        f"{path} cannot be read as {form} ({' '.join(str(reason).split())[:200]}): check the file."
    )


def _parquet(path: Path) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet

    try:
        with reading.open_regular(path) as stream:
            return pyarrow.parquet.read_table(pa.PythonFile(stream))
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise _unreadable(path, "Parquet", error) from error


def _arrow(path: Path) -> pa.Table:
    """Reads an Arrow file, as a stream, which is how `datasets` writes them."""
    import pyarrow as pa

    try:
        with reading.open_regular(path) as stream, pa.ipc.open_stream(stream) as batches:
            return batches.read_all()
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise _unreadable(path, "Arrow", error) from error


def _concatenated(path: Path, tables: Sequence[pa.Table]) -> pa.Table:
    import pyarrow as pa

    try:
        whole = pa.concat_tables(tables)
    except pa.ArrowException as error:
        raise UserError(
            f"The files of {path} have different columns ({str(error).splitlines()[0][:200]}): "
            "read them separately."
        ) from error
    if not whole.num_rows:
        raise UserError(f"{path} has no rows: check the file.")
    return whole


def _files_of_splits(directory: Path) -> dict[str, list[Path]]:
    """Returns the data files of each split of a directory."""
    subdirectories = [path for path in sorted(directory.iterdir()) if path.is_dir()]
    found = {}
    if (directory / "dataset_dict.json").exists():
        for folder in subdirectories:
            if files := sorted(folder.glob("*.arrow")):
                found[folder.name] = files
    elif files := sorted(directory.glob("*.arrow")):
        found["train"] = files
    else:
        for file in sorted(directory.rglob("*.parquet")):
            # 'data/train-00000-of-00002.parquet', or 'default/train/0000.parquet'
            own, sign, _ = file.stem.partition("-")
            name = own if sign or not own.isdecimal() else file.parent.name
            found.setdefault(name, []).append(file)
    if not found:
        raise UserError(
            f"{directory} contains neither Arrow nor Parquet files: save the data set with "
            "Dataset.save_to_disk, or clone a repository that has Parquet files."
        )
    return found


def _features(table: pa.Table) -> dict[str, Any]:
    """Returns the description of the columns that `datasets` writes; empty for none."""
    try:
        described = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
        found = described.get("info", {}).get("features", {})
    except (ValueError, AttributeError):
        return {}
    return found if isinstance(found, dict) else {}


def _class_names(table: pa.Table) -> dict[str, tuple[str, ...]]:
    """Returns the names of the labels of those columns that have some."""
    return {
        column: tuple(map(str, feature["names"]))
        for column, feature in _features(table).items()
        if isinstance(feature, dict) and isinstance(feature.get("names"), list)
    }


def _frame(table: pa.Table, path: Path) -> pd.DataFrame:
    """Returns a table as a frame, with images decoded."""
    frame = table.to_pandas()
    for column in frame.columns:
        first = next((cell for cell in frame[column] if cell is not None), None)
        if isinstance(first, dict) and set(first) == {"bytes", "path"}:
            frame[column] = [
                _image(path, column, row, cell) for row, cell in enumerate(frame[column])
            ]
    return frame


def _image(path: Path, column: str, row: int, cell: Any) -> np.ndarray | None:
    """Decodes an image to `[height, width, channels]` uint8; None stays a missing value."""
    if cell is None:
        return None
    if not cell["bytes"]:
        raise UserError(
            f"{path} names a file in row {row} of the column {column!r} and does not contain its "
            "image: save the data set with the images embedded."
        )
    try:
        with Image.open(io.BytesIO(cell["bytes"])) as image:
            gray = image.mode in ("1", "L", "I", "I;16", "F")
            pixels = np.asarray(image.convert("L" if gray else "RGB"))
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(
            f"{path} has an image in row {row} of the column {column!r} that cannot be decoded "
            f"({error}): remove the row."
        ) from error
    return pixels[..., np.newaxis] if pixels.ndim == 2 else pixels
