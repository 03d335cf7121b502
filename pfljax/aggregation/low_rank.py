"""Low rank: of every matrix only its leading singular values are sent, in both directions.

References:
  Wu, Wu, Lyu, Huang, Xie, "Communication-Efficient Federated Learning via Knowledge Distillation",
  2022, https://arxiv.org/abs/2108.13323 (FedKD, of which this aggregator is a part).
"""

from __future__ import annotations

from typing import Annotated

import jax
import jax.numpy as jnp

from pfljax import core
from pfljax.aggregation.types import Aggregator, Encoded, Kind
from pfljax.core import PyTree
from pfljax.ops import linear_algebra


def compress(values: PyTree, energy: jax.Array) -> tuple[PyTree, jax.Array]:
    """Replaces every matrix by the least of its leading singular values that hold `energy`.

    Args:
      values: a tree of arrays; one with more than two axes is a matrix whose columns are its last
        axis, and one with fewer than two is left as it is.
      energy: `[]`, share of the sum of the squared singular values that must be exceeded; where
        all of them do not exceed it, all are kept, and the first one always is.

    Returns:
      The values, and `[]`, how many numbers describe them.
    """

    def one(leaf):
        if leaf.ndim < 2:
            return leaf, leaf.size
        matrix = leaf.reshape(-1, leaf.shape[-1])
        wide = matrix.shape[0] < matrix.shape[1]
        tall = matrix.T if wide else matrix
        # The eigenvectors of the smaller product are the singular vectors of one side. Projecting
        # on the leading ones cuts the others off, and needs no vectors of the other, longer side.
        squares, vectors = linear_algebra.eigh(tall.T @ tall)
        held = jnp.cumsum(jnp.maximum(squares[::-1], 0))
        held_before = jnp.concatenate([jnp.zeros_like(held[:1]), held[:-1]])
        kept = held_before <= energy * held[-1]
        leading = vectors[:, ::-1] * kept
        cut = tall @ leading @ leading.T
        numbers = jnp.sum(kept) * (sum(matrix.shape) + 1)
        cut = cut.T if wide else cut
        return cut.reshape(leaf.shape), jnp.minimum(numbers, leaf.size)

    leaves, structure = jax.tree.flatten(values)
    leaves, numbers = zip(*map(one, leaves), strict=True)
    return jax.tree.unflatten(structure, leaves), sum(numbers)


@core.checked
def low_rank(
    *,
    energy_start: Annotated[float, core.between(0, 1)] = 0.95,
    energy_end: Annotated[float, core.between(0, 1)] = 0.98,
) -> Aggregator:
    """Truncates singular value decompositions of the clients' values, and of their mean.

        C(X) = the least of the leading singular values that hold the energy
        client: x_k -> C(x_k);   server: mean -> C(mean)
        energy = energy_start + (energy_end - energy_start) (round + 1) / num_rounds

    Args:
      energy_start: share of the squared singular values to be exceeded at first, 0.5 to 1 (all).
      energy_end: the same in the last round.

    Returns:
      The aggregator; it has no state.

    Notes:
      Vectors are sent as they are. C does not depend on the scale of a matrix, so that the server
      may take it of the sum. A matrix counts as its factors, or as it is where that is less.
    """

    def energy(context):
        progress = (context.round + 1) / jnp.maximum(context.num_rounds, 1)
        return energy_start + (energy_end - energy_start) * progress

    def encode(message, size, client, server, context):
        values, numbers = compress(message.values, energy(context))
        size = size._replace(numbers=jnp.asarray(numbers, jnp.float32))
        return Encoded(message._replace(values=values), size)

    def decode(total, server, context):
        values, _ = compress(total.message.values, energy(context))
        return total.message._replace(values=values), server

    return Aggregator("low_rank", Kind.LOW_RANK, encode, decode)
