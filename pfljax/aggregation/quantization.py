"""Stochastic uniform quantization: few bits for an entry, rounded so that the mean stays.

References:
  Alistarh, Grubic, Li, Tomioka, Vojnovic, "QSGD: Communication-Efficient SGD via Gradient
  Quantization and Encoding", 2017, https://arxiv.org/abs/1610.02132.
"""

from __future__ import annotations

from typing import Annotated

import jax
import jax.numpy as jnp

from pfljax import core
from pfljax.aggregation.types import Aggregator, Encoded, Kind


@core.checked
def quantize(*, bits: Annotated[int, core.between(2, 16)] = 8) -> Aggregator:
    """Rounds every entry at random to one of `2^bits - 1` levels, without bias.

        s = 2^(bits - 1) - 1,   c = the largest |x_i| of an array,   y_i = s |x_i| / c
        Q(x_i) = c sign(x_i) (floor(y_i) + b_i) / s,   b_i = 1 with probability y_i - floor(y_i)

    Args:
      bits: of an entry, its sign included, 2 to 16.

    Returns:
      The aggregator; it has no state.

    Notes:
      `E[Q(x)] = x`. The scale of an array is its largest magnitude, as in the authors' experiments,
      not its L2 norm; it is sent with 32 bits. Their encoding of the levels is left out: an entry
      counts with `bits`, and only entries that a stage before sends are counted.
    """
    levels = 2.0 ** (bits - 1) - 1

    def rounded(leaf, key):
        largest = jnp.max(jnp.abs(leaf), initial=0)
        scale = jnp.where(largest == 0, 1, largest)
        level = jnp.asarray(levels, leaf.dtype) * (jnp.abs(leaf) / scale)
        up = jax.random.uniform(key, leaf.shape, leaf.dtype) < level - jnp.floor(level)
        return jnp.sign(leaf) * scale * ((jnp.floor(level) + up) / levels)

    def encode(message, size, client, server, context):
        leaves, structure = jax.tree.flatten(message.values)
        keys = jax.random.split(context.key, len(leaves))
        values = [rounded(leaf, key) for leaf, key in zip(leaves, keys, strict=True)]
        size = size._replace(
            bits_per_number=jnp.asarray(bits, jnp.float32),
            other_bits=size.other_bits + 32 * len(leaves),
        )
        return Encoded(message._replace(values=jax.tree.unflatten(structure, values)), size)

    return Aggregator("quantize", Kind.QUANTIZED, encode)
