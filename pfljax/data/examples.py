"""A pool of examples as a source reads it, before clients own rows of it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pfljax.data.input_arrays import Inputs, Statistic, Vocabulary

# Into how many equally large groups partitions and splits sort targets that are no classes.
_GROUPS_OF_TARGETS = 10


class Examples(NamedTuple):
    """A pool of examples in the host's memory, and what is known of it.

    Attributes:
      name: how reports call it.
      inputs: `[n, ...]` in the dtype in which they are distributed; text and tables of ids int32;
        one array, or a dict of arrays by name.
      targets: `[n]` int32 labels in `[0, num_classes)`; `[n]` float32 for a regression; `[n, T]`
        int32 for next_token, each the token after that of the inputs, 0 where there is none;
        `[n]` int32 zeros for ranking.
      num_classes: `C`, for next_token the vocabulary's size; 0 for a regression or ranking.
      mean: subtracted from the inputs on the device, in stored units; one number, or an array
        that fits the last axes of an example; by name where inputs are a dict.
      std: divides the inputs after that, in stored units; of the same kind.
      task: one of `dataset.TASKS`.
      owners: `[n]` integers, the natural client of each example; None where there are none.
      time_gap: None if the order of rows means nothing. Otherwise the rows of an owner lie in the
        order of time, each client's test part is its last, and this many examples are left out
        between two parts, because neighbours share measurements.
      vocabulary: sizes of the id spaces of inputs that are ids: one for text, one for each column
        of a table of ids; empty for inputs that are measured. Where inputs are a dict, a dict by
        the names of those that are ids.
      target_mean: of a regression, subtracted from its targets inside the program.
      target_std: of a regression, divides its targets after that.
      superclasses: `[C]` integers, the superclass of each class; None where there are none.
      class_names: what the labels mean, `C` names; empty where they are numbers.
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

    @property
    def labels(self) -> np.ndarray:
        """What partitions and splits go by: `[n]` integers.

        The targets of a classification, the tenth in which a regression's target lies, and 0 for
        every example of another task.

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
