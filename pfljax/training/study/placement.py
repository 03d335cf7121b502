"""From a data set to examples where they are trained on: on every device, or on the host."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from pfljax.data import FederatedDataset, Split
from pfljax.engine import mapping
from pfljax.engine.clients.host_examples import HostExamples
from pfljax.engine.examples import Examples


def to_devices(
    dataset: FederatedDataset, devices: Sequence[jax.Device], max_train_size: int | None = None
) -> Examples:
    """Copies a data set to every device of this process.

    Args:
      dataset: on the host.
      devices: of the run.
      max_train_size: the largest training set for which programs are compiled; None for the data
        set's own.
    """
    splits = _splits(dataset)
    examples = Examples(
        inputs=dataset.inputs,
        targets=dataset.targets,
        offsets={name: np.asarray(split.offsets, np.int32) for name, split in splits.items()},
        sizes={name: np.asarray(split.sizes, np.int32) for name, split in splits.items()},
        class_counts=dataset.class_counts(),
        max_train_size=max_train_size or int(dataset.train.sizes.max()),
        num_participants=dataset.num_participants,
    )
    return mapping.replicate(examples, devices)


def _splits(dataset: FederatedDataset) -> dict[str, Split]:
    return {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}


def on_host(dataset: FederatedDataset) -> HostExamples:
    """Returns a data set for a population on the host; nothing is copied."""
    splits = _splits(dataset)
    return HostExamples(
        inputs=dataset.inputs,
        targets=dataset.targets,
        offsets={name: split.offsets for name, split in splits.items()},
        sizes={name: split.sizes for name, split in splits.items()},
        num_classes=dataset.num_classes,
        max_train_size=int(dataset.train.sizes.max()),
        num_participants=dataset.num_participants,
        class_counts=dataset.class_counts,
    )
