"""Over-the-air aggregation: an analogue channel adds up what the clients send at the same time.

References:
  Zhu, Wang, Huang, "Broadband Analog Aggregation for Low-Latency Federated Edge Learning", 2020,
  https://arxiv.org/abs/1812.11494 (truncated channel inversion).
  Amiri, Gunduz, "Federated Learning over Wireless Fading Channels", 2020,
  https://arxiv.org/abs/1907.09769.
"""

from __future__ import annotations

from typing import Annotated

import jax
import jax.numpy as jnp
import optax

from pfljax import core
from pfljax.aggregation import messages
from pfljax.aggregation.types import Aggregator, Encoded, Kind
from pfljax.core import tree


@core.checked
def over_the_air(
    *,
    snr_db: Annotated[float, core.between(-100, 200)] = 20.0,
    noise_std: Annotated[float, core.at_least(0)] = 0.0,
    fading: bool = False,
    gain_threshold: Annotated[float, core.above(0)] = 0.1,
) -> Aggregator:
    """Adds the receiver's noise to the sum; with fading, clients in a deep fade do not transmit.

        sum_k w_k x_k + N(0, sigma^2),   over the clients that transmit
        sigma = r / sqrt(SNR),   r = root mean square of an entry of w_k x_k over these clients
        fading: |h_k|^2 ~ Exp(1); client k transmits where |h_k|^2 >= gain_threshold, and inverts
        its channel, for which the SNR at the receiver is divided by E_1(gain_threshold)

    Args:
      snr_db: mean power of one client over that of the noise, in dB, -10 to 40.
      noise_std: standard deviation of the noise in each entry of the sum, in its unit, in place of
        that of `snr_db`; 0 takes `snr_db`.
      fading: Rayleigh fading with truncated channel inversion; False for a channel of gain 1.
      gain_threshold: least power gain with which a client transmits, 0.01 to 1.

    Returns:
      The aggregator; it has no state.

    Notes:
      `E_1` is the exponential integral, the power that inversion takes on average: a low threshold
      loses few clients and much power. The weights, and what r needs, are sent digitally, without
      error and in public; a client that does not transmit has weight 0. Entries are symbols of the
      channel, not bits: the number of bits reported is that of the message without the channel.
    """

    def encode(message, size, client, server, context):
        gain = jax.random.exponential(context.key)
        transmits = (gain >= gain_threshold) | ~jnp.asarray(fading, bool)

        def received(values):
            return tree.where(transmits, values, tree.zeros_like(values))

        message = message._replace(
            values=received(message.values), weights=received(message.weights)
        )
        scaled = [messages.scale(*part) for part in zip(*message, strict=True)]
        terms = (tree.squared_norm(scaled), transmits.astype(jnp.float32))
        return Encoded(message, size, terms=terms)

    def decode(total, server, context):
        values = total.message.values
        squares, transmitters = total.terms
        loss = jnp.where(fading, jax.scipy.special.exp1(gain_threshold), 1.0)
        power = squares / (jnp.maximum(transmitters, 1) * tree.size(values))
        relative = jnp.sqrt(power * loss * 10.0 ** (-snr_db / 10))
        std = jnp.where(noise_std > 0, noise_std, relative) * (transmitters > 0)
        noise = optax.tree.random_like(context.key, values, jax.random.normal)
        values = jax.tree.map(
            lambda leaf, draw: leaf + std.astype(leaf.dtype) * draw, values, noise
        )
        return total.message._replace(values=values), server

    return Aggregator("over_the_air", Kind.CHANNEL, encode, decode)
