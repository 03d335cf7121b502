"""Data sets that tensorflow-datasets has prepared, read without TensorFlow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pfljax.errors import UserError


def read_prepared(
    builder: str,
    data_dir: str,
    *,
    splits: Sequence[str],
    take: Callable[[dict[str, Any]], tuple],
    searched: Sequence[Path] = (),
    files: str = "",
) -> list[np.ndarray]:
    """Returns fields of all examples of a prepared data set, stacked.

    They come in TFDS's order, which is not that of the files as they are distributed: the same
    seed deals them out differently.

    Args:
      builder: TFDS's name, with a config where there are several, such as 'emnist/digits'.
      data_dir: where TFDS keeps its data; empty means its own default.
      splits: of the data set, which are read one after the other.
      take: what to keep of an example, as a tuple of arrays and numbers of fixed shape.
      searched: where other forms of the data set were looked for, to tell the user.
      files: which other form would have done, to tell the user.

    Returns:
      One array for each entry of the tuple, `[n, ...]`.

    Raises:
      UserError: TFDS does not find it, or cannot read it.
    """
    try:
        import tensorflow_datasets as tfds  # slow to import, and only this function needs it

        rows = []
        for split in splits:
            source = tfds.data_source(
                builder, split=split, data_dir=data_dir or None, download=False
            )
            rows += [take(source[index]) for index in range(len(source))]
        return [np.stack(column) for column in zip(*rows, strict=True)]
    except Exception as error:  # TFDS raises a different type for each thing that is missing.
        where = " or ".join(map(str, searched)) or "data.dir, which is empty"
        reason = (str(error).splitlines() or [type(error).__name__])[0].split(". ")[0]
        option = f" --data_dir={data_dir}" if data_dir else ""
        form = f"name in data.dir a directory that holds {files}, or, where" if files else "where"
        raise UserError(
            f"No {builder} in {where}: {form} TensorFlow is installed, "
            f"run `tfds build {builder} --file_format=array_record{option}` "
            f"(TFDS now says: {reason})."
        ) from error
