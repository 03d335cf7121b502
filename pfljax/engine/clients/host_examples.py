"""All clients' examples on the host, and copies of those that a device needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from pfljax.engine.examples import Examples


class HostExamples(NamedTuple):
    """The examples of all clients, including held-out ones, possibly in memory-mapped files.

    Clients may share rows.

    Attributes:
      inputs: `[num_examples, ...]` in stored dtype; one array, or a tree of arrays.
      targets: `[num_examples, ...]`, the targets.
      offsets: `{split: [num_clients]}`, the first row of each client, for the splits train,
        validation and test.
      sizes: `{split: [num_clients]}`, the number of rows of each client.
      num_classes: `C`.
      max_train_size: The size of the largest training set.
      max_eval_size: The size of the largest validation or test set, at least 1.
      num_participants: Number of clients that can be sampled, those with the lowest ids.
      class_counts: `() -> [num_clients, C]` int32, of the training examples; called only if the
        server's initial state depends on them. None if no function of the method uses them.
      items: `[num_items, ...]`, if `inputs` are item numbers: copies contain `items[inputs]`.
    """

    inputs: Any
    targets: np.ndarray
    offsets: dict[str, np.ndarray]
    sizes: dict[str, np.ndarray]
    num_classes: int
    max_train_size: int
    max_eval_size: int
    num_participants: int
    class_counts: Callable[[], np.ndarray] | None
    items: np.ndarray | None = None

    @property
    def num_clients(self) -> int:
        """Number of all clients, including held-out ones."""
        return len(self.sizes["train"])

    def capacity(self, shard: int, splits: Sequence[str]) -> int:
        """Returns the maximum number of examples of `shard` clients."""
        totals = sum(np.asarray(self.sizes[split], np.int64) for split in splits)
        shard = min(shard, len(totals))
        return max(1, int(np.partition(totals, -shard)[-shard:].sum()))

    def shard(self, ids: np.ndarray, splits: Sequence[str], capacity: int) -> Examples:
        """Copies the examples of some clients to new arrays.

        Args:
          ids: `[shard]`; negative ids are padding.
          splits: The splits to copy; the clients have no examples of the others.
          capacity: The length of the returned arrays; see the method of this name.

        Returns:
          NumPy arrays, in which client `ids[i]` has the index i.
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
                    # Raveled, because next_token has a row of tokens for each example; all tokens
                    # are counted, including padding, as in `FederatedDataset.class_counts`.
                    labels = targets[end : end + size].ravel()
                    counts[row] = np.bincount(labels, minlength=self.num_classes)
                end += size
        if self.items is not None:
            # A cohort needs few of the items: its examples are copied, not all items.
            inputs = self.items[inputs]
        bounds = (self.max_train_size, self.max_eval_size, self.num_participants)
        return Examples(inputs, targets, offsets, sizes, counts, *bounds)
