"""Views of one client's examples; the arrays contain the examples of all clients.

Shapes in the docstrings: `C` classes, `B` examples in a batch, `[]` a scalar.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# The numbers of bits of a 32-bit word that may be used for an index.
_BITS_OF_NUMBERS = (16, 24, 31)


class Batch(NamedTuple):
    """Some examples of one client; rows whose mask is False are padding.

    Attributes:
      inputs: `[B, ...]` in the dtype in which the examples are stored; one array, or a tree of
        arrays such as `{'user': [B], 'item': [B]}`.
      targets: `[B, ...]`.
      mask: `[B]` bool, True for a real example.
    """

    inputs: Any
    targets: jax.Array
    mask: jax.Array


def mean_over(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns `[]`, the mean of the values where the mask of their shape is True; 0 without any."""
    return jnp.sum(values * mask) / jnp.maximum(jnp.sum(mask), 1)


def random_order(key: jax.Array, length: int, size: jax.Array) -> jax.Array:
    """Returns `[length]` int32: the indices below `size` `[]` in random order, then the others.

    Each index is combined with a random rank in the upper bits of a word: sorting single words is
    several times as fast as sorting pairs. Equal ranks are sorted again by further bits, until all
    32 bits of a draw have been used. The order depends on `length` only through the number of bits
    of an index.
    """
    own_bits = next(bits for bits in _BITS_OF_NUMBERS if length <= 2**bits)
    positions, own = jnp.arange(length, dtype=jnp.uint32), jnp.uint32(2**own_bits - 1)
    order = jnp.arange(length, dtype=jnp.int32)
    bits = jax.random.bits(key, (length,), jnp.uint32)
    for used in range(0, 32, 32 - own_bits):
        # Indices beyond `size` get the last rank and sort after the others.
        rank = jnp.where(positions < size, bits << used, ~jnp.uint32(0)) & ~own
        order = order[jnp.sort(rank | positions) & own]
    return order


def _rows(array: jax.Array, rows: jax.Array) -> jax.Array:
    """Returns `array[rows]`, copied as rows of one axis, which a CPU copies with vectors."""
    flat = array.reshape(array.shape[0], -1)
    return jnp.take(flat, rows, axis=0, mode="clip").reshape(*rows.shape, *array.shape[1:])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ClientData:
    """A view of ONE client's examples; the arrays are shared by all clients.

    Attributes:
      inputs: `[num_examples, ...]`, all clients' examples, in stored dtype; one array, or a tree of
        arrays.
      targets: `[num_examples, ...]`, the targets of all clients.
      offset: `[]` int32, the row of this client's first example.
      size: `[]` int32, the number of this client's examples.
      class_counts: `[C]` int32, the number of examples of each label; None if no function of the
        method uses them.
      max_size: The largest `size` in the population, of this split (static).
      order: `[max_size]` int32, the index of the example in each row; None for the stored order.
      items: `[num_items, ...]`, if `inputs` are item numbers: batches contain `items[inputs]`. None
        if they contain `inputs`.
    """

    inputs: Any
    targets: jax.Array
    offset: jax.Array
    size: jax.Array
    class_counts: jax.Array | None
    max_size: int = dataclasses.field(metadata={"static": True})
    order: jax.Array | None = None
    items: jax.Array | None = None

    def take(self, indices: jax.Array) -> Batch:
        """Returns the examples at `indices` `[B]`; those outside `[0, size)` are masked."""
        mask = (indices >= 0) & (indices < self.size)
        rows = jnp.where(mask, indices, 0)
        rows = self.offset + (rows if self.order is None else self.order[rows])
        inputs = jax.tree.map(lambda array: _rows(array, rows), self.inputs)
        if self.items is not None:
            inputs = _rows(self.items, inputs)
        return Batch(inputs, _rows(self.targets, rows), mask)

    def rows(self, start: jax.Array | int, stop: jax.Array | int) -> ClientData:
        """Returns a view of the examples `start` to `stop` only; both are in `[0, size]`.

        `class_counts` remain those of all the client's examples.
        """
        start, stop = jnp.asarray(start, jnp.int32), jnp.asarray(stop, jnp.int32)
        if self.order is not None:
            order = jnp.roll(self.order, -start)
            return dataclasses.replace(self, size=stop - start, order=order)
        return dataclasses.replace(self, offset=self.offset + start, size=stop - start)

    def hold_out(self, fraction: float) -> tuple[ClientData, ClientData]:
        """Returns views of the examples without the last `fraction`, at least one, and of the rest.

        `class_counts` remain those of all the client's examples.
        """
        count = jnp.floor(fraction * self.size).astype(jnp.int32)
        cut = self.size - jnp.clip(count, 0, jnp.maximum(self.size - 1, 0))
        return self.rows(0, cut), self.rows(cut, self.size)

    def weight(self, by_size: bool) -> jax.Array:
        """Returns `[]`, the client's weight in an average: its number of examples, or 1."""
        return jnp.where(by_size, self.size, 1)

    def shuffled(self, key: jax.Array) -> ClientData:
        """Returns a view of the training examples in a random order determined by the key."""
        order = random_order(key, self.max_size, self.size)
        return dataclasses.replace(self, order=order if self.order is None else self.order[order])
