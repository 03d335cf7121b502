"""All clients' examples as they lie on the host, and the few of them that a device needs now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from pfljax.engine.examples import Examples


class HostExamples(NamedTuple):
    """The examples of all clients, seen and unseen, in arrays that may be memory-mapped files.

    Clients may shard rows.

    Attributes:
      inputs: `[num_examples, ...]` in stored dtype; one array, or a tree of arrays.
      targets: `[num_examples, ...]`.
      offsets: `{split: [num_clients]}` for the splits train, validation and test.
      sizes: `{split: [num_clients]}`.
      num_classes: `C`.
      max_train_size: the largest training set.
      num_participants: the clients with ids below it may be chosen for a round.
      class_counts: `() -> [num_clients, C]` int32, of the training examples; called only where the
        server's first state depends on them. None where no function of the method reads them.
    """

    inputs: Any
    targets: np.ndarray
    offsets: dict[str, np.ndarray]
    sizes: dict[str, np.ndarray]
    num_classes: int
    max_train_size: int
    num_participants: int
    class_counts: Callable[[], np.ndarray] | None

    @property
    def num_clients(self) -> int:
        """All clients, the unseen ones included."""
        return len(self.sizes["train"])

    def capacity(self, shard: int, splits: Sequence[str]) -> int:
        """Returns how many examples `shard` clients have at most."""
        totals = sum(np.asarray(self.sizes[split], np.int64) for split in splits)
        shard = min(shard, len(totals))
        return max(1, int(np.partition(totals, -shard)[-shard:].sum()))

    def shard(self, ids: np.ndarray, splits: Sequence[str], capacity: int) -> Examples:
        """Copies the examples of some clients together.

        Args:
          ids: `[shard]`; nobody where negative.
          splits: which examples; the others are left out, as if the clients had none.
          capacity: of the arrays returned; see the method of this name.

        Returns:
          NumPy arrays, in which client `ids[i]` stands in row i.
        """
        stored, structure = jax.tree.flatten((self.inputs, self.targets))
        copies = [np.zeros((capacity, *array.shape[1:]), array.dtype) for array in stored]
        inputs, targets = jax.tree.unflatten(structure, copies)
        offsets = {name: np.zeros(len(ids), np.int32) for name in self.sizes}
        sizes = {name: np.zeros(len(ids), np.int32) for name in self.sizes}
        counts = None
        if self.class_counts is not None:
            counts = np.zeros((len(ids), self.num_classes), np.int32)
        end = 0
        for row, client in enumerate(ids):
            for split in splits if client >= 0 else ():
                begin, size = int(self.offsets[split][client]), int(self.sizes[split][client])
                for copy, array in zip(copies, stored, strict=True):
                    copy[end : end + size] = array[begin : begin + size]
                offsets[split][row], sizes[split][row] = end, size
                if split == "train" and counts is not None and self.num_classes:
                    # Raveled, because next_token has a row of tokens for each example; every
                    # token is counted, padding too, as `FederatedDataset.class_counts` does.
                    labels = targets[end : end + size].ravel()
                    counts[row] = np.bincount(labels, minlength=self.num_classes)
                end += size
        bounds = (self.max_train_size, self.num_participants)
        return Examples(inputs, targets, offsets, sizes, counts, *bounds)
