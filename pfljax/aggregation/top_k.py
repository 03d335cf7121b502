"""Top-k sparsification with error feedback: only the largest entries are sent, the others later.

References:
  Stich, Cordonnier, Jaggi, "Sparsified SGD with Memory", 2018, https://arxiv.org/abs/1809.07599.
  Alistarh et al., "The Convergence of Sparsified Gradient Methods", 2018,
  https://arxiv.org/abs/1809.10505.
"""

from __future__ import annotations

from typing import Annotated

import jax
import jax.numpy as jnp

from pfljax import core
from pfljax.aggregation import messages
from pfljax.aggregation.types import Aggregator, Encoded, Kind
from pfljax.core import tree
from pfljax.ops import masks


@core.checked
def top_k(*, fraction: Annotated[float, core.above(0, 1)] = 0.1) -> Aggregator:
    """Sends the entries of largest magnitude, and adds the others to the next message.

        v = x_k + e_k;   m = 1 on the ceil(fraction d) entries of largest |v|, else 0
        send m v;   e_k <- v - m v

    Args:
      fraction: share of a message's `d` entries that are sent, 0.001 to 1 (all).

    Returns:
      The aggregator; a client's state is `e_k`, of the values' shapes, zeros at first.

    Notes:
      The entries of all arrays compete with one another. A message counts as its entries and the
      indices of these, or one bit for each of the `d` entries where that is less. A client whose
      weight is zero keeps all in `e_k`, as nothing of its message arrives. Absolute values, such as
      means of features, would accumulate in `e_k`, so that methods which upload them are refused.
    """

    def init_client(message):
        messages.require_scalar_weights(message, "top_k", "adds up what earlier rounds left out")
        return tree.zeros_like(message.values)

    def encode(message, size, memory, server, context):
        wanted = tree.add(message.values, memory)
        leaves, structure = jax.tree.flatten(wanted)
        entries = tree.size(wanted)
        count = jnp.ceil(fraction * entries).astype(jnp.int32)
        magnitudes = jnp.concatenate([jnp.abs(leaf).ravel() for leaf in leaves])
        magnitudes = magnitudes.astype(jnp.promote_types(magnitudes.dtype, jnp.float32))
        least = masks.least_of_largest(magnitudes, count)
        kept = [(jnp.abs(leaf) >= least) & (leaf != 0) for leaf in leaves]
        sent = jax.tree.unflatten(
            structure, [jnp.where(mask, leaf, 0) for mask, leaf in zip(kept, leaves, strict=True)]
        )
        arrived = tuple(
            value if weight is None else tree.where(weight > 0, value, tree.zeros_like(value))
            for value, weight in zip(sent, message.weights, strict=True)
        )
        numbers = sum(jnp.sum(mask) for mask in kept).astype(jnp.float32)
        index_bits = jnp.minimum(numbers * max(1, (entries - 1).bit_length()), entries)
        return Encoded(
            message._replace(values=sent),
            size._replace(numbers=numbers, other_bits=size.other_bits + index_bits),
            state=tree.subtract(wanted, arrived),
        )

    return Aggregator("top_k", Kind.SPARSE, encode, init_client=init_client)
