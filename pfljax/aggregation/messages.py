"""A client's upload as aggregators see it: values that are averaged or added up, and their weights.

Every `Weighted` in `ClientOutput.sum` is one part of the message, whose value is the tree before it
was multiplied by its weight; every other array is a part that is added up as it is, without weight.
A weight is a scalar, or has one entry for each row of the value (`[C]`, for each class).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pfljax.core import PyTree, Weighted, tree
from pfljax.errors import UserError


class Message(NamedTuple):
    """The parts of a message.

    Attributes:
      values: one tree of arrays for each part; of a client, before it is multiplied by the weight,
        and of a total the sum of the weighted values.
      weights: one array for each part, whose axes are the first ones of the value's leaves; None
        for a part without weight.
    """

    values: tuple[PyTree, ...]
    weights: tuple[jax.Array | None, ...]


class Size(NamedTuple):
    """Number of bits of a client's upload, in the terms in which aggregators change it.

    Attributes:
      numbers: `[]` float, how many numbers of the values are sent.
      bits_per_number: `[]` float.
      other_bits: `[]` float, of everything else: weights, indices, scales, `ClientOutput.each`.
    """

    numbers: jax.Array
    bits_per_number: jax.Array
    other_bits: jax.Array

    @property
    def bits(self) -> jax.Array:
        """`[]` float, the number of bits in all."""
        return self.numbers * self.bits_per_number + self.other_bits


class Public(NamedTuple):
    """Scalars beside a message that aggregators pass on unchanged.

    Attributes:
      terms: scalars that are added up over the cohort.
    """

    terms: PyTree


def _parts(upload: PyTree) -> tuple[list[Any], Any]:
    """Returns the parts of an upload, `Public` ones too, and its structure."""
    return jax.tree.flatten(upload, is_leaf=lambda node: isinstance(node, Weighted | Public))


def _aligned(weight: jax.Array, leaf: jax.Array) -> jax.Array:
    """Returns a weight in the dtype of a value's leaf, with axes of length 1 for its other axes."""
    axes = weight.shape + (1,) * (leaf.ndim - weight.ndim)
    return weight.astype(leaf.dtype).reshape(axes)


def scale(value: PyTree, weight: jax.Array | None) -> PyTree:
    """Returns a part's value times its weight; the value itself where it has none."""
    if weight is None:
        return value
    return jax.tree.map(lambda leaf: _aligned(weight, leaf) * leaf, value)


def of_client(upload: PyTree) -> Message:
    """Returns one client's message, or those of a cohort, `[cohort, ...]`.

    Args:
      upload: `ClientOutput.sum`, or its leaves stacked.

    Returns:
      The message; values without weight are zero.
    """

    def value(part):
        if not isinstance(part, Weighted):
            return part
        inverse = jnp.where(part.weight > 0, 1 / jnp.where(part.weight > 0, part.weight, 1), 0)
        return scale(part.value, inverse)

    parts = [part for part in _parts(upload)[0] if not isinstance(part, Public)]
    return Message(tuple(value(part) for part in parts), _weights(parts))


def of_total(upload: PyTree) -> Message:
    """Returns the sum of a cohort's uploads as a message whose values are weighted sums."""
    parts = [part for part in _parts(upload)[0] if not isinstance(part, Public)]
    values = tuple(part.value if isinstance(part, Weighted) else part for part in parts)
    return Message(values, _weights(parts))


def _weights(parts: list[Any]) -> tuple[jax.Array | None, ...]:
    return tuple(part.weight if isinstance(part, Weighted) else None for part in parts)


def to_client(message: Message, like: PyTree) -> PyTree:
    """The inverse of `of_client`; `like` is the upload, whose `Public` terms stay."""
    values = tuple(map(scale, *message))
    return to_total(message._replace(values=values), like)


def to_total(message: Message, like: PyTree) -> PyTree:
    """The inverse of `of_total`; `like` is the sum of the uploads, whose `Public` terms stay."""
    parts, structure = _parts(like)
    rest = iter(zip(*message, strict=True))

    def one(part):
        if isinstance(part, Public):
            return part
        value, weight = next(rest)
        return value if weight is None else Weighted(value, weight)

    return jax.tree.unflatten(structure, [one(part) for part in parts])


def size(upload: PyTree, each: PyTree) -> Size:
    """Returns the number of bits of an upload, counted from shapes.

    Args:
      upload: `ClientOutput.sum` of one client.
      each: `ClientOutput.each` of one client.
    """
    message = of_total(upload)
    numbers, value_bytes = tree.size(message.values), tree.num_bytes(message.values)
    other = tree.num_bytes((upload, each)) - value_bytes
    bits = (numbers, 8 * value_bytes / max(numbers, 1), 8 * other)
    return Size(*(jnp.asarray(number, jnp.float32) for number in bits))


def require_scalar_weights(message: Message, name: str, reason: str) -> None:
    """Raises a `UserError` for a message with a weight for each class.

    Args:
      message: of a client.
      name: the aggregator's.
      reason: why it cannot take such a message, the middle of a sentence.
    """
    if any(weight is not None and weight.ndim > 0 for weight in message.weights):
        raise UserError(
            f"The aggregator {name!r} cannot be used with a method that uploads a mean for each "
            f"class, as it {reason}; leave it out of config.aggregation.stages, or name another "
            "method."
        )
