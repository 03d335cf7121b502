"""Features that a frozen network computes once for each distinct item, before training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pfljax.data import checks
from pfljax.data.dataset import FederatedDataset
from pfljax.errors import UserError


def precompute(
    dataset: FederatedDataset, function: Callable[[np.ndarray], Any], batch_size: int = 64
) -> FederatedDataset:
    """Replaces the inputs of a data set by a function of them, computed once for each distinct one.

        items[i] <- function(items[i])

    The function may be the frozen part of a network, such as an encoder of texts or all layers
    below the lowest adapted one. Its outputs are then the inputs of the trained part.

    Args:
      dataset: The data set; its inputs, or items, are one array. Without items, the distinct inputs
        become items.
      function: `[batch_size, ...] -> [batch_size, ...]`, of inputs as stored, without
        standardization; may be jitted, as all batches have the same shape.
      batch_size: Number of items in a batch; the last batch repeats its last item.

    Returns:
      The data set with the outputs as items, `[num_items, ...]` float32, which are neither
      standardized nor ids.

    Raises:
      UserError: The inputs are a dict of arrays, the batch size is no whole number above 0, or the
        outputs do not have one row for each item, or are not finite.

    >>> from pfljax.data.arrays import from_arrays
    >>> ratings = from_arrays(np.array([[3.0], [4.0], [3.0], [3.0]] * 2), [0, 1] * 4, [0] * 8)
    >>> squares = precompute(ratings, np.square)
    >>> squares.items.tolist(), squares.inputs.shape
    ([[9.0], [16.0]], (8,))
    """
    checks.whole("batch_size", batch_size, 1)
    if isinstance(dataset.inputs, Mapping):
        raise UserError(
            f"precompute replaces one array, and the inputs of {dataset.name} are "
            f"{', '.join(dataset.inputs)}; join them first."
        )
    if dataset.items is None:
        dataset = _with_items(dataset)
    starts = range(0, len(dataset.items), batch_size)
    outputs = []
    for start in starts:
        rows = np.minimum(np.arange(start, start + batch_size), len(dataset.items) - 1)
        found = np.asarray(function(dataset.items[rows]), np.float32)
        if found.shape[:1] != (batch_size,):
            raise UserError(
                f"The function of precompute returned the shape {found.shape} for {batch_size} "
                "items; it needs one row for each of them."
            )
        if not np.isfinite(found).all():
            raise UserError(
                f"The function of precompute returned a value that is not finite for the items "
                f"{start} to {rows[-1]}; standardize its inputs, or correct its params."
            )
        outputs.append(found[: len(dataset.items) - start])
    return dataset._replace(items=np.concatenate(outputs), mean=0.0, std=1.0, vocabulary=())


def _with_items(dataset: FederatedDataset) -> FederatedDataset:
    """Returns the data set with its distinct inputs as items, those of the server included."""
    pieces = [dataset.inputs]
    if dataset.server is not None:
        pieces.append(dataset.server.inputs)
    rows = np.concatenate(pieces)
    _, first, numbers = np.unique(
        rows.reshape(len(rows), -1), axis=0, return_index=True, return_inverse=True
    )
    numbers = numbers.reshape(-1).astype(np.int32)
    own, of_server = np.split(numbers, [len(dataset.inputs)])
    server = dataset.server and dataset.server._replace(inputs=of_server)
    return dataset._replace(inputs=own, items=rows[first], server=server)
