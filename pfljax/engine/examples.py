"""All clients' examples on a device: flat, in stored dtype, with offsets."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from pfljax.core.client_data import ClientData
from pfljax.core.types import ClientProfile, Population, PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Examples:
    """The examples of all clients, including held-out ones.

    Attributes:
      inputs: `[num_examples, ...]` in stored dtype; one array, or a tree of arrays.
      targets: `[num_examples, ...]`, the targets.
      offsets: `{split: [num_clients] int32}`, the first row of each client, for the splits train,
        validation and test.
      sizes: `{split: [num_clients] int32}`, the number of rows of each client.
      class_counts: `[num_clients, C]` int32, of the training examples; None if no function of the
        method uses them.
      max_train_size: The size of the largest training set (static).
      max_eval_size: The size of the largest validation or test set, at least 1 (static).
      num_participants: Number of clients that can be sampled, those with the lowest ids (static).
      items: `[num_items, ...]`, if `inputs` are item numbers: models read `items[inputs]`. None if
        they read `inputs`.
    """

    inputs: PyTree
    targets: jax.Array
    offsets: dict[str, jax.Array]
    sizes: dict[str, jax.Array]
    class_counts: jax.Array | None
    max_train_size: int = dataclasses.field(metadata={"static": True})
    max_eval_size: int = dataclasses.field(metadata={"static": True})
    num_participants: int = dataclasses.field(metadata={"static": True})
    items: jax.Array | None = None

    @property
    def num_clients(self) -> int:
        """Number of all clients, including held-out ones."""
        return self.sizes["train"].shape[0]

    def of_client(self, client_id: jax.Array, split: str = "train") -> ClientData:
        """Returns one client's view of a split, without examples for a negative id."""
        row = jnp.maximum(client_id, 0)
        return ClientData(
            inputs=self.inputs,
            targets=self.targets,
            offset=self.offsets[split][row],
            size=jnp.where(client_id < 0, 0, self.sizes[split][row]),
            class_counts=self._counts(client_id, row),
            max_size=self.max_train_size if split == "train" else self.max_eval_size,
            items=self.items,
        )

    def profile(self, client_id: jax.Array) -> ClientProfile:
        """Returns the profile of a client."""
        data = self.of_client(client_id)
        return ClientProfile(client_id, data.size, data.class_counts)

    def population(self) -> Population:
        """Returns the profiles of all clients that can be sampled."""
        seen = slice(self.num_participants)
        counts = None if self.class_counts is None else self.class_counts[seen]
        return Population(self.sizes["train"][seen], counts)

    def _counts(self, client_id: jax.Array, row: jax.Array) -> jax.Array | None:
        if self.class_counts is None:
            return None
        return jnp.where(client_id < 0, 0, self.class_counts[row])
