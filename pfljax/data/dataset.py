"""The data structure of all federated data sets on the host."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from pfljax.data.input_arrays import Inputs, Statistic, Vocabulary, map_inputs

TASKS = (
    *("classification", "regression", "next_token", "ranking", "preference"),
    "recommendation",
)
# The tasks whose targets are numbers, float32.
OF_NUMBERS = ("regression", "recommendation")
# The tasks whose targets are labels, of which there are `num_classes`.
_LABELLED = ("classification", "next_token")


class Split(NamedTuple):
    """The rows of each client's examples of one split in the flat arrays.

    Attributes:
      offsets: `[N]` int32, the row of the client's first example.
      sizes: `[N]` int32, the number of the client's examples, which are in consecutive rows.
    """

    offsets: np.ndarray
    sizes: np.ndarray

    def examples(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns `[n]` int32 each, the client and the row of every example of the split.

        >>> client, row = Split(np.array([0, 5]), np.array([2, 1])).examples()
        >>> client.tolist(), row.tolist()
        ([0, 0, 1], [0, 1, 5])
        """
        client = np.repeat(np.arange(len(self.sizes), dtype=np.int32), self.sizes)
        first = np.cumsum(self.sizes) - self.sizes
        row = np.arange(len(client)) + np.repeat(self.offsets - first, self.sizes)
        return client, row.astype(np.int32)


class ServerExamples(NamedTuple):
    """Examples that the server holds, in the form of the clients' and with their normalization.

    Attributes:
      inputs: `[n, ...]` in the distributed dtype; one array, or a dict of arrays by name.
      targets: `[n, ...]`.
    """

    inputs: Inputs
    targets: np.ndarray


class FederatedDataset(NamedTuple):
    """All clients' examples in two flat arrays without padding.

    The rows of a client are consecutive: training, then validation, then test examples. The last
    `num_unseen` clients are held out and never train.

    Attributes:
      name: The name of the data set in reports.
      inputs: `[num_examples, ...]` in the distributed dtype (images stay uint8); one array,
        or a dict of arrays by name, such as the ids of users and items; with `items`,
        `[num_examples]` or `[num_examples, K]` item numbers.
      targets: `[num_examples]` int32 labels, or float32 for a regression, or `[num_examples, T]`
        int32 for next_token, 0 for no token; for ranking and preference, where the inputs of an
        example are a chosen item and others that were not chosen, `[num_examples]` int32 zeros; for
        recommendation `[num_examples]` float32, the ratings of the chosen items.
      train: The training examples of each client.
      validation: The validation examples of each client; sizes are 0 if there are none.
      test: The test examples of each client.
      num_classes: `C`; for next_token, the size of the vocabulary; for recommendation, the number
        of tags; 0 for a regression, ranking or preference.
      mean: The value subtracted from the inputs in the compiled program, in stored units: one
        number, or an array that broadcasts to the last axes of an example; by name if inputs are
        a dict.
      std: The value by which the inputs are then divided, in stored units; like `mean`.
      num_unseen: Number of held-out clients, which are the last ones.
      task: The kind of targets, one of `TASKS`.
      vocabulary: The sizes of the id spaces of inputs that are ids: one for text, one for each
        column of a table of ids; empty for numeric inputs. If inputs are a dict, a dict by the
        names of those that are ids.
      target_mean: The value subtracted from the targets of a regression or recommendation in the
        compiled program.
      target_std: The value by which they are then divided.
      class_names: The `C` names of the labels or tags; empty if they are numbers.
      client_names: The `N` names of the clients; empty if they are numbers.
      server: The examples that the server holds and no client; None if there are none.
      items: `[num_items, ...]`, what several examples have in common, such as a text that many
        users rate: models read `items[inputs]`, and `mean`, `std` and `vocabulary` are those of the
        items. None if each example has inputs of its own.
      groups: `{attribute: [N] str}`, the group of each client, for metrics only; '' for an unknown
        one. None if there are none.

    Example:
      >>> from pfljax.data import load
      >>> data = load("digits", partition="iid", num_clients=10, unseen_fraction=0.2)
      >>> data.num_clients, data.num_unseen, data.inputs.shape
      (10, 2, (1797, 8, 8, 1))
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
    server: ServerExamples | None = None
    items: np.ndarray | None = None
    groups: dict[str, np.ndarray] | None = None

    @property
    def contents(self) -> Inputs:
        """What models read, before it is gathered for each example: the items, or the inputs."""
        return self.inputs if self.items is None else self.items

    @property
    def input_forms(self) -> Any:
        """Shape and dtype of the inputs of one example as models read them, `ShapeDtypeStruct`s."""
        rows = self.inputs.shape[1:] if self.items is not None else ()
        return map_inputs(
            lambda array: jax.ShapeDtypeStruct((*rows, *array.shape[1:]), array.dtype),
            self.contents,
        )

    def gathered(self) -> FederatedDataset:
        """Returns the data set without items: every example has a copy of its item."""
        if self.items is None:
            return self
        server = self.server
        if server is not None:
            server = server._replace(inputs=self.items[server.inputs])
        return self._replace(inputs=self.items[self.inputs], items=None, server=server)

    @property
    def num_clients(self) -> int:
        """Number of all clients, including held-out ones."""
        return len(self.train.sizes)

    @property
    def num_participants(self) -> int:
        """Number of clients that can be sampled: ids `0 .. num_participants - 1`."""
        return self.num_clients - self.num_unseen

    @property
    def has_labels(self) -> bool:
        """Whether targets are labels, of which there are `num_classes`."""
        return self.task in _LABELLED

    def class_counts(self) -> np.ndarray:
        """Returns `[N, C]` int32, the number of each client's training examples of each class.

        For next_token, training tokens are counted; a task without labels has zeros.
        """
        counts = np.zeros((self.num_clients, self.num_classes), np.int32)
        if not self.has_labels:
            return counts
        for client, (offset, size) in enumerate(zip(*self.train, strict=True)):
            labels = self.targets[offset : offset + size].ravel()
            counts[client] = np.bincount(labels, minlength=self.num_classes)
        return counts
