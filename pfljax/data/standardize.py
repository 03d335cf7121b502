"""Standardization of numeric inputs by the clients' training examples."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pfljax.data.dataset import FederatedDataset
from pfljax.data.input_arrays import by_name, of_name
from pfljax.data.sources.scale import mean_and_std
from pfljax.errors import UserError

# given: the mean and the deviation that come with the data set; pooled: those of all training
# examples of participating clients; client: each client's inputs by its own training examples.
STANDARDIZATIONS = ("given", "pooled", "client")


def standardize(dataset: FederatedDataset, kind: str) -> FederatedDataset:
    """Standardizes the numeric inputs of a data set, each feature or channel.

        x <- (x - mean) / std;  std = 1 for a constant feature

    No test or validation example changes the mean and the standard deviation (of the population,
    without the correction of the degrees of freedom).

    Args:
      dataset: The data set; for 'client' without items, see `FederatedDataset.gathered`.
      kind: One of `STANDARDIZATIONS`; for 'client' the inputs are copied in float32, and a
        held-out client uses its own training examples too.

    Returns:
      The data set with other statistics, or for 'client' with standardized inputs.

    Raises:
      UserError: The data set has no numeric inputs.

    >>> from pfljax.data.arrays import from_arrays
    >>> draws = np.random.default_rng(0).normal(5, 3, (60, 2))
    >>> made = from_arrays(draws, draws[:, 0] > 5, np.repeat([0, 1, 2], 20))
    >>> own = standardize(made, "client")
    >>> rows = slice(own.train.offsets[1], own.train.offsets[1] + own.train.sizes[1])
    >>> bool(np.allclose(own.inputs[rows].mean(axis=0), 0, atol=1e-6)), own.mean
    (True, 0.0)
    """
    if kind == "given":
        return dataset
    numeric = {
        name: array
        for name, array in by_name(dataset.contents).items()
        if not of_name(dataset.vocabulary, name, ())
    }
    if not numeric:
        raise UserError(
            f"{dataset.name} has ids as inputs, which are not standardized: use "
            "data.standardize=given."
        )
    if kind == "pooled":
        ends = zip(dataset.train.offsets, dataset.train.sizes, strict=True)
        rows = np.concatenate([np.arange(o, o + n) for o, n in [*ends][: dataset.num_participants]])
        if dataset.items is not None:
            rows = dataset.inputs[rows].ravel()
        found = {name: _statistics(array[rows]) for name, array in numeric.items()}
        if not isinstance(dataset.inputs, Mapping):
            mean, std = found[""]
            return dataset._replace(mean=mean, std=std)
        mean, std = ({name: each[part] for name, each in found.items()} for part in (0, 1))
        return dataset._replace(mean=mean, std=std)

    splits = (dataset.train, dataset.validation, dataset.test)
    copies = {name: np.asarray(array, np.float32).copy() for name, array in numeric.items()}
    for client in range(dataset.num_clients):
        begins = [split.offsets[client] for split in splits]
        parts = [slice(o, o + s.sizes[client]) for o, s in zip(begins, splits, strict=True)]
        for name, array in numeric.items():
            mean, std = _statistics(array[parts[0]])
            for part in parts:
                copies[name][part] = (array[part] - mean) / std
    if not isinstance(dataset.inputs, Mapping):
        return dataset._replace(inputs=copies[""], mean=0.0, std=1.0)
    inputs = {name: copies.get(name, array) for name, array in dataset.inputs.items()}
    return dataset._replace(
        inputs=inputs, mean=dict.fromkeys(copies, 0.0), std=dict.fromkeys(copies, 1.0)
    )


def _statistics(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean and the deviation of each feature; one number for inputs that are one."""
    if array.ndim > 1:
        return mean_and_std(array)
    mean, std = mean_and_std(array[:, np.newaxis])
    return mean[0], std[0]
