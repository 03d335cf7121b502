"""Copies a data set to where it is used: every device, or the host."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from pfljax.core import ClientData, Population
from pfljax.data import FederatedDataset, ServerExamples, Split, server
from pfljax.engine import mapping
from pfljax.engine.clients.host_examples import HostExamples
from pfljax.engine.examples import Examples


class Bounds(NamedTuple):
    """The sizes for which programs are compiled.

    Attributes:
      train: The maximum number of training examples of a client.
      scored: The maximum number of examples of a client in an evaluated split, at least 1.
    """

    train: int
    scored: int


def bounds_of(datasets: Sequence[FederatedDataset]) -> Bounds:
    """Returns the bounds of programs that serve several data sets of the same form."""

    def largest(splits):
        return max(int(np.max(split.sizes)) for split in splits)

    scored = [split for dataset in datasets for split in (dataset.validation, dataset.test)]
    return Bounds(largest(dataset.train for dataset in datasets), max(1, largest(scored)))


def to_devices(
    dataset: FederatedDataset,
    devices: Sequence[jax.Device],
    bounds: Bounds | None = None,
    *,
    class_counts: bool = False,
) -> Examples:
    """Copies a data set to every device of this process.

    Args:
      dataset: The data set on the host.
      devices: The devices of the run.
      bounds: The sizes for which programs are compiled; None for those of the data set.
      class_counts: Whether the method uses class counts.
    """
    splits, bounds = _splits(dataset), bounds or bounds_of([dataset])
    examples = Examples(
        inputs=dataset.inputs,
        targets=dataset.targets,
        offsets={name: np.asarray(split.offsets, np.int32) for name, split in splits.items()},
        sizes={name: np.asarray(split.sizes, np.int32) for name, split in splits.items()},
        class_counts=dataset.class_counts() if class_counts else None,
        max_train_size=bounds.train,
        max_eval_size=bounds.scored,
        num_participants=dataset.num_participants,
        items=dataset.items,
    )
    return mapping.replicate(examples, devices)


def server_data(dataset: FederatedDataset) -> ClientData | None:
    """Returns the examples that the server holds, on the host; None for none.

    Args:
      dataset: The data set.

    Raises:
      UserError: They have another form than those of the clients.
    """
    if dataset.server is None:
        return None
    server.require_form(dataset.server, ServerExamples(dataset.inputs, dataset.targets))
    inputs, targets = dataset.server
    counts = np.zeros(dataset.num_classes, np.int32)
    if dataset.has_labels:
        counts = np.bincount(targets.ravel(), minlength=dataset.num_classes).astype(np.int32)
    size = len(targets)
    held = ClientData(inputs, targets, np.int32(0), np.int32(size), counts, max_size=size)
    return dataclasses.replace(held, items=dataset.items)


def _splits(dataset: FederatedDataset) -> dict[str, Split]:
    return {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}


def with_class_counts(
    examples: Examples, dataset: FederatedDataset, devices: Sequence[jax.Device], wanted: bool
) -> Examples:
    """Returns the examples with class counts, or without; all other arrays are shared.

    Args:
      examples: The examples of the data set on devices.
      dataset: The data set on the host.
      devices: The devices of the examples.
      wanted: Whether the method uses class counts.
    """
    if wanted == (examples.class_counts is not None):
        return examples
    counts = mapping.replicate(dataset.class_counts(), devices) if wanted else None
    return dataclasses.replace(examples, class_counts=counts)


def shapes(dataset: FederatedDataset, max_train_size: int) -> tuple[Population, ClientData]:
    """Returns shapes and dtypes of the population and of one client's data, with class counts.

    Args:
      dataset: The data set on the host.
      max_train_size: The maximum training set size for which programs are compiled.
    """

    def array(*shape, dtype=np.int32):
        return jax.ShapeDtypeStruct(shape, jax.dtypes.canonicalize_dtype(dtype))

    count, classes = dataset.num_participants, dataset.num_classes
    inputs, targets, items = jax.tree.map(
        lambda each: array(*each.shape, dtype=each.dtype),
        (dataset.inputs, dataset.targets, dataset.items),
    )
    client = ClientData(
        *(inputs, targets, array(), array(), array(classes)), max_size=max_train_size, items=items
    )
    return Population(array(count), array(count, classes)), client


def on_host(dataset: FederatedDataset, bounds: Bounds | None = None) -> HostExamples:
    """Returns a data set for a population on the host, without class counts; nothing is copied.

    Args:
      dataset: The data set on the host.
      bounds: The sizes for which programs are compiled; None for those of the data set.
    """
    bounds = bounds or bounds_of([dataset])
    splits = _splits(dataset)
    return HostExamples(
        inputs=dataset.inputs,
        targets=dataset.targets,
        offsets={name: split.offsets for name, split in splits.items()},
        sizes={name: split.sizes for name, split in splits.items()},
        num_classes=dataset.num_classes,
        max_train_size=bounds.train,
        max_eval_size=bounds.scored,
        num_participants=dataset.num_participants,
        class_counts=None,
        items=dataset.items,
    )
