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

    They are in TFDS's order, which is not that of the distributed files: the same seed partitions
    them differently.

    Args:
      builder: The name in TFDS, with a config if there are several, such as 'emnist/digits'.
      data_dir: The data directory of TFDS; empty means its default.
      splits: The splits of the data set, which are read in this order.
      take: Extracts a tuple of arrays and numbers of fixed shape from an example.
      searched: The directories searched for other formats of the data set, for error messages.
      files: The files of the other format, for error messages.

    Returns:
      One array for each entry of the tuple, `[n, ...]`.

    Raises:
      UserError: TFDS does not find the data set, or cannot read it.
    """
    try:
        import tensorflow_datasets as tfds  # slow to import, used by this function only

        rows = []
        for split in splits:
            source = tfds.data_source(
                builder, split=split, data_dir=data_dir or None, download=False
            )
            rows += [take(source[index]) for index in range(len(source))]
        return [np.stack(column) for column in zip(*rows, strict=True)]
    except Exception as error:  # TFDS raises different types for different missing parts.
        where = " or ".join(map(str, searched)) or "data.dir, which is empty"
        reason = (str(error).splitlines() or [type(error).__name__])[0].split(". ")[0]
        option = f" --data_dir={data_dir}" if data_dir else ""
        form = f"set data.dir to a directory with {files}, or, where" if files else "where"
        raise UserError(
            f"No {builder} in {where}: {form} TensorFlow is installed, "
            f"run `tfds build {builder} --file_format=array_record{option}` "
            f"(TFDS now says: {reason})."
        ) from error
