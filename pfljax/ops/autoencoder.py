"""A small autoencoder of the rows of a matrix."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from pfljax.core.types import Params
from pfljax.ops import linear
from pfljax.ops.minimize import minimize

_HALVES = ("encoder", "decoder")


def init(key: jax.Array, width: int, latent: int, hidden: int, dtype: jnp.dtype) -> Params:
    """Returns an autoencoder, `{'encoder': [layer, ...], 'decoder': [layer, ...]}`.

    Args:
      key: Typed PRNG key.
      width: The number of entries of a row, `P`.
      latent: The number of entries of a latent vector, `K`.
      hidden: The width of the hidden layer of each half; 0 for a linear autoencoder.
      dtype: The dtype of all arrays.
    """
    sizes = (width, hidden, latent) if hidden else (width, latent)
    halves = {}
    for half, half_key, ends in zip(
        _HALVES, jax.random.split(key), (sizes, sizes[::-1]), strict=True
    ):
        keys = jax.random.split(half_key, len(ends) - 1)
        pairs = zip(keys, ends[:-1], ends[1:], strict=True)
        halves[half] = [linear.init(k, before, after, dtype) for k, before, after in pairs]
    return halves


def encode(params: Params, rows: jax.Array) -> jax.Array:
    """Returns the latent vectors `[..., K]` of rows `[..., P]`."""
    return linear.apply_layers(params["encoder"], rows)


def decode(params: Params, latents: jax.Array) -> jax.Array:
    """Returns the rows `[..., P]` of latent vectors `[..., K]`."""
    return linear.apply_layers(params["decoder"], latents)


def error(params: Params, rows: jax.Array) -> jax.Array:
    """Returns `[]`, the mean over rows `[N, P]` and entries of the squared reconstruction error."""
    return jnp.mean((decode(params, encode(params, rows)) - rows) ** 2)


def fit(
    key: jax.Array, rows: jax.Array, latent: int, hidden: int, rate: float, steps: int
) -> Params:
    """Returns an autoencoder after steps of Adam on the reconstruction error of all rows.

    Args:
      key: Typed PRNG key.
      rows: `[N, P]`, standardized.
      latent: The number of entries of a latent vector.
      hidden: The width of the hidden layer of each half; 0 for a linear autoencoder, whose optimum
        spans the principal directions.
      rate: Learning rate at the first step, which decays to 0 as a cosine.
      steps: Number of steps.
    """
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))
    params = init(key, rows.shape[1], latent, hidden, rows.dtype)
    keys = jax.random.split(key, steps)
    fitted, _ = minimize(
        lambda params, key: error(params, rows), params, optimizer, optimizer.init(params), keys
    )
    return fitted
