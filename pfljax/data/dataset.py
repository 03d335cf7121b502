"""The one form that every federated data set takes before it reaches a device."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pfljax.data.input_arrays import Inputs, Statistic, Vocabulary

TASKS = ("classification", "regression", "next_token", "ranking")


class Split(NamedTuple):
    """Where each client's examples of one split lie in the flat arrays.

    Attributes:
      offsets: `[N]` int32, the row of the client's first example.
      sizes: `[N]` int32, the number of its examples; they follow one another.
    """

    offsets: np.ndarray
    sizes: np.ndarray


class FederatedDataset(NamedTuple):
    """All clients' examples in flat arrays, never padded.

    The rows of a client follow one another: training, then validation, then test. The last
    `num_unseen` clients never take part in training.

    Attributes:
      name: how reports call it.
      inputs: `[num_examples, ...]` in the dtype in which they are distributed (images stay uint8);
        one array, or a dict of arrays by name, such as the ids of users and items.
      targets: `[num_examples]` int32 labels, or float32 for a regression, or `[num_examples, T]`
        int32 for next_token, 0 where there is no token; for ranking, where the inputs of an
        example are a chosen item and others that were not chosen, `[num_examples]` int32 zeros.
      train: the training examples of each client.
      validation: the validation examples of each client; sizes are 0 where there are none.
      test: the test examples of each client.
      num_classes: `C`, for next_token the vocabulary's size; 0 for a regression or ranking.
      mean: subtracted from the inputs inside the program, in stored units; one number, or an array
        that fits the last axes of an example; by name where inputs are a dict.
      std: divides the inputs after that, in stored units; of the same kind.
      num_unseen: how many clients, the last ones, are held out.
      task: what the targets are, one of `TASKS`.
      vocabulary: sizes of the id spaces of inputs that are ids: one for text, one for each column
        of a table of ids; empty for inputs that are measured. Where inputs are a dict, a dict by
        the names of those that are ids.
      target_mean: of a regression, subtracted from its targets inside the program.
      target_std: of a regression, divides its targets after that.
      class_names: what the labels mean, `C` names; empty where they are numbers.
      client_names: how the clients are called, `N` names; empty where they are numbers.
    """

    name: str
    inputs: Inputs
    targets: np.ndarray
    train: Split
    validation: Split
    test: Split
    num_classes: int
    mean: Statistic = 0.0
    std: Statistic = 1.0
    num_unseen: int = 0
    task: str = "classification"
    vocabulary: Vocabulary = ()
    target_mean: float = 0.0
    target_std: float = 1.0
    class_names: tuple[str, ...] = ()
    client_names: tuple[str, ...] = ()

    @property
    def num_clients(self) -> int:
        """All clients, the unseen ones included."""
        return len(self.train.sizes)

    @property
    def num_participants(self) -> int:
        """The clients that may be chosen for a round: ids `0 .. num_participants - 1`."""
        return self.num_clients - self.num_unseen

    def class_counts(self) -> np.ndarray:
        """Returns `[N, C]` int32, each client's training examples of each class.

        For next_token they are each client's training tokens; for a regression `C` is 0.
        """
        counts = np.zeros((self.num_clients, self.num_classes), np.int32)
        if self.num_classes == 0:
            return counts
        for client, (offset, size) in enumerate(zip(*self.train, strict=True)):
            labels = self.targets[offset : offset + size].ravel()
            counts[client] = np.bincount(labels, minlength=self.num_classes)
        return counts
