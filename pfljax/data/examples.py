"""A pool of examples as read by a source, before it is partitioned."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pfljax.data.input_arrays import Inputs, Statistic, Vocabulary

# Number of equally large groups of targets that are not classes, for partitions and splits.
_GROUPS_OF_TARGETS = 10


class Examples(NamedTuple):
    """A pool of examples in host memory, with its description.

    Attributes:
      name: The name of the data set in reports.
      inputs: `[n, ...]` in the distributed dtype; int32 for text and tables of ids; one array, or a
        dict of arrays by name; with `items`, `[n]` or `[n, K]` item numbers.
      targets: `[n]` int32 labels in `[0, num_classes)`; `[n]` float32 for a regression; `[n, T]`
        int32 for next_token, each the token after that of the inputs, 0 for none; `[n]` int32
        zeros for ranking and preference; `[n]` float32 ratings for recommendation.
      num_classes: `C`; for next_token, the size of the vocabulary; for recommendation, the number
        of tags; 0 for a regression, ranking or preference.
      mean: The value subtracted from the inputs on the device, in stored units: one number, or an
        array that broadcasts to the last axes of an example; by name if inputs are a dict.
      std: The value by which the inputs are then divided, in stored units; like `mean`.
      task: One of `dataset.TASKS`.
      owners: `[n]` integers, the natural client of each example; None if there are none.
      time_gap: None if the order of rows has no meaning. Otherwise the rows of an owner are in
        order of time, the test examples of a client are its last ones, and this number of examples
        is dropped between two parts, because neighbours share measurements.
      vocabulary: The sizes of the id spaces of inputs that are ids: one for text, one for each
        column of a table of ids; empty for numeric inputs. If inputs are a dict, a dict by the
        names of those that are ids.
      target_mean: The value subtracted from the targets of a regression in the compiled program.
      target_std: The value by which the targets of a regression are then divided.
      superclasses: `[C]` integers, the superclass of each class; None if there are none.
      class_names: The `C` names of the labels or tags; empty if they are numbers.
      items: `[num_items, ...]`, what several examples have in common, such as a text that many
        users rate; `mean`, `std` and `vocabulary` are then those of the items. None if each example
        has inputs of its own.
      item_groups: `[num_items]` integers, the group of each item, such as the product of a review,
        which a split by item keeps together; None if every item is a group.
      item_of: `[n]` integers, the item of each example that has inputs of its own, such as the
        question of a pair of answers, which a split by item keeps together; None if there is none.
      owner_names: The names of the owners in the order of their numbers, which are then from 0;
        empty if there are none.
      owner_groups: `{attribute: [num_owners] str}`, the group of each owner, for metrics only; ''
        for an unknown one. With `owner_names` only; None if there are none.
    """

    name: str
    inputs: Inputs
    targets: np.ndarray
    num_classes: int
    mean: Statistic = 0.0
    std: Statistic = 1.0
    task: str = "classification"
    owners: np.ndarray | None = None
    time_gap: int | None = None
    vocabulary: Vocabulary = ()
    target_mean: float = 0.0
    target_std: float = 1.0
    superclasses: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    items: np.ndarray | None = None
    item_groups: np.ndarray | None = None
    item_of: np.ndarray | None = None
    owner_names: tuple[str, ...] = ()
    owner_groups: dict[str, np.ndarray] | None = None

    @property
    def contents(self) -> Inputs:
        """What models read, before it is gathered for each example: the items, or the inputs."""
        return self.inputs if self.items is None else self.items

    @property
    def split_items(self) -> np.ndarray | None:
        """`[n]` integers, what a split by item keeps together; None if there are no items."""
        if self.items is None or self.inputs.ndim != 1:
            return self.item_of
        return self.inputs if self.item_groups is None else self.item_groups[self.inputs]

    @property
    def labels(self) -> np.ndarray:
        """Returns `[n]` integers, the labels used by partitions and splits.

        These are the targets of a classification, the decile of each target of a regression, and
        0 for every example of another task.

        >>> pool = Examples("toy", np.zeros((4, 1)), np.float32([0, 1, 2, 9]), 0, task="regression")
        >>> pool.labels.tolist()
        [0, 3, 6, 9]
        """
        if self.task == "classification":
            return self.targets
        if self.task == "regression":
            inner = np.linspace(0, 1, _GROUPS_OF_TARGETS + 1)[1:-1]
            edges = np.quantile(self.targets, inner)
            return np.searchsorted(edges, self.targets, side="left").astype(np.int32)
        return np.zeros(len(self.targets), np.int32)
