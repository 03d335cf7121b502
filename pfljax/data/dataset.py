"""The one form that every federated data set takes before it reaches a device."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Split(NamedTuple):
    """Where each client's examples of one split lie in the flat arrays.

    Attributes:
      offsets: `[N]` int32, the row of the client's first example.
      sizes: `[N]` int32, the number of its examples; they follow one another.
    """

    offsets: np.ndarray
    sizes: np.ndarray


class FederatedDataset(NamedTuple):
    """All clients' examples in two flat arrays, never padded.

    The rows of a client follow one another: training, then validation, then test. The last
    `num_unseen` clients never take part in training.

    Attributes:
      name: how reports call it.
      inputs: `[num_examples, ...]` in the dtype in which they are distributed (images stay uint8).
      targets: `[num_examples]` int32 labels.
      train: the training examples of each client.
      validation: the validation examples of each client; sizes are 0 where there are none.
      test: the test examples of each client.
      num_classes: `C`.
      mean: subtracted from the inputs inside the program, in stored units.
      std: divides the inputs after that, in stored units.
      num_unseen: how many clients, the last ones, are held out.
    """

    name: str
    inputs: np.ndarray
    targets: np.ndarray
    train: Split
    validation: Split
    test: Split
    num_classes: int
    mean: float = 0.0
    std: float = 1.0
    num_unseen: int = 0

    @property
    def num_clients(self) -> int:
        """All clients, the unseen ones included."""
        return len(self.train.sizes)

    @property
    def num_participants(self) -> int:
        """The clients that may be chosen for a round: ids `0 .. num_participants - 1`."""
        return self.num_clients - self.num_unseen

    def class_counts(self) -> np.ndarray:
        """Returns `[N, C]` int32, each client's training examples of each class."""
        counts = np.zeros((self.num_clients, self.num_classes), np.int32)
        for client, (offset, size) in enumerate(zip(*self.train, strict=True)):
            labels = self.targets[offset : offset + size]
            counts[client] = np.bincount(labels, minlength=self.num_classes)
        return counts
