"""Clipping of the clients' messages and Gaussian noise on their sum: differential privacy.

The mean is uniform: every weight becomes 1, so that no client adds more than the bound to the sum,
and the number of clients is all that the server learns without noise. How much privacy the noise
gives over many rounds is not computed.

References:
  McMahan, Ramage, Talwar, Zhang, "Learning Differentially Private Recurrent Language Models", 2018,
  https://arxiv.org/abs/1710.06963.
  Andrew, Thakkar, McMahan, Ramaswamy, "Differentially Private Learning with Adaptive Clipping",
  2021, https://arxiv.org/abs/1905.03871 (algorithm 1).
"""

from __future__ import annotations

import numbers
from typing import Annotated

import jax
import jax.numpy as jnp
import optax

from pfljax import core
from pfljax.aggregation import messages
from pfljax.aggregation.messages import Message
from pfljax.aggregation.types import Aggregator, Encoded, Kind
from pfljax.core import tree
from pfljax.errors import UserError


def _clipped(message: Message, bound: jax.Array, name: str) -> tuple[Message, jax.Array]:
    """Returns a message of norm `bound` at most with weights 1, and `[]`, the norm it had."""
    messages.require_scalar_weights(message, name, "would leave the numbers of examples exact")
    norm = optax.tree.norm(message.values)
    # A norm that overflows would make zeros of finite entries.
    factor = jnp.where(jnp.isfinite(norm), bound / jnp.maximum(norm, bound), jnp.nan)
    values = jax.tree.map(lambda leaf: factor.astype(leaf.dtype) * leaf, message.values)
    weights = tuple(None if weight is None else jnp.ones_like(weight) for weight in message.weights)
    return Message(values, weights), norm


def _noisy(message: Message, deviation: jax.Array, key: jax.Array) -> Message:
    """Returns a total with independent Gaussian noise of a standard deviation in each entry."""
    noise = optax.tree.random_like(key, message.values, jax.random.normal)
    return message._replace(
        values=jax.tree.map(
            lambda leaf, draw: leaf + jnp.asarray(deviation, leaf.dtype) * draw,
            message.values,
            noise,
        )
    )


@core.checked
def clip(
    *,
    bound: Annotated[float, core.above(0)] = 1.0,
    noise_multiplier: Annotated[float, core.at_least(0)] = 0.0,
) -> Aggregator:
    """Clips each message to an L2 norm, and adds noise to the sum once in a round.

        x_k <- x_k min(1, bound / ||x_k||),   w_k <- 1
        sum_k x_k + N(0, (noise_multiplier bound)^2)

    Args:
      bound: largest L2 norm of a client's message, over all of its parts together, 0.01 to 10;
        every client then has weight 1, whatever weights the method has.
      noise_multiplier: standard deviation of the noise over the bound, 0.1 to 2; 0 for no noise.

    Returns:
      The aggregator; it has no state.

    Notes:
      Parts without a weight are clipped and noisy too. Messages with a weight for each class are
      refused. What a method uploads in `ClientOutput.each`, and training metrics, do not pass here.
    """

    def encode(message, size, client, server, context):
        return Encoded(_clipped(message, jnp.asarray(bound), "clip")[0], size)

    def decode(total, server, context):
        return _noisy(total.message, noise_multiplier * bound, context.key), server

    return Aggregator("clip", Kind.BOUNDED, encode, decode)


@core.checked
def adaptive_clip(
    *,
    bound: Annotated[float, core.above(0)] = 0.1,
    quantile: Annotated[float, core.between(0, 1)] = 0.5,
    bound_rate: Annotated[float, core.at_least(0)] = 0.2,
    noise_multiplier: Annotated[float, core.at_least(0)] = 0.0,
    count_noise: Annotated[float, core.at_least(0)] = 0.0,
) -> Aggregator:
    """`clip` with a bound that follows a quantile of the clients' norms.

        b_k = [||x_k|| <= C],   share = (sum_k b_k + N(0, count_noise^2)) / count
        C <- C exp(-bound_rate (share - quantile)),   after the noise of the round
        noise on the sum: N(0, (z C)^2),   z^-2 = noise_multiplier^-2 - (2 count_noise)^-2

    Args:
      bound: C in the first round, 0.01 to 10; the paper takes 0.1. Every client has weight 1.
      quantile: share of the clients whose norm is to be below C, 0.1 to 0.9; the paper takes 0.5.
      bound_rate: how fast C moves, 0.05 to 0.5; the paper takes 0.2, and 0 keeps it.
      noise_multiplier: noise of the round as a whole, 0.1 to 2; 0 for no noise on the sum.
      count_noise: standard deviation of the noise on the number of clients below C; the paper takes
        a twentieth of the cohort's size. With noise on the sum it must exceed
        `noise_multiplier / 2`.

    Returns:
      The aggregator; its state at the server is C.

    Notes:
      As for `clip`.

    Raises:
      UserError: the number of clients below C would be known too exactly for the noise wanted.
    """
    given = all(isinstance(value, numbers.Real) for value in (noise_multiplier, count_noise))
    if given and noise_multiplier > 0 and 2 * count_noise <= noise_multiplier:
        raise UserError(
            f"adaptive_clip.count_noise is {count_noise}; with a noise_multiplier of "
            f"{noise_multiplier} it must be above {noise_multiplier / 2}."
        )

    def on_sum():
        # z written without a division by zero: without noise it is zero.
        spent = noise_multiplier / jnp.maximum(2 * count_noise, 1e-30)
        without = jnp.where(noise_multiplier > 0, 1 - spent**2, 1)
        return noise_multiplier / jnp.sqrt(without)

    def init_server(message):
        return jnp.asarray(bound, tree.dtype(message.values))

    def encode(message, size, client, bound, context):
        clipped, norm = _clipped(message, bound, "adaptive_clip")
        return Encoded(clipped, size, terms=(norm <= bound).astype(bound.dtype))

    def decode(total, bound, context):
        sum_key, count_key = jax.random.split(context.key)
        message = _noisy(total.message, on_sum() * bound, sum_key)
        within = total.terms + count_noise * jax.random.normal(count_key, (), bound.dtype)
        gap = within / total.count - quantile
        return message, (bound * jnp.exp(-bound_rate * gap)).astype(bound.dtype)

    return Aggregator("adaptive_clip", Kind.BOUNDED, encode, decode, init_server=init_server)
