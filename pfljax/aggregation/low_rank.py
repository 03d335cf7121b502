"""Low rank: of every matrix only its leading singular values are sent, in both directions.

References:
  Wu, Wu, Lyu, Huang, Xie, "Communication-Efficient Federated Learning via Knowledge Distillation",
  2022, https://arxiv.org/abs/2108.13323 (FedKD, which brings this aggregator along).
"""

from __future__ import annotations

from typing import Annotated

import jax.numpy as jnp

from pfljax import core
from pfljax.aggregation.types import Aggregator, Encoded, Kind
from pfljax.core.low_rank import compress


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
        return Encoded(message._replace(values=values), size._replace(numbers=numbers))

    def decode(total, server, context):
        values, _ = compress(total.message.values, energy(context))
        return total.message._replace(values=values), server

    return Aggregator("low_rank", Kind.LOW_RANK, encode, decode)
