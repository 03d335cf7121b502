"""A small network that generates features of a class from noise."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pfljax.core.types import Params
from pfljax.ops import linear


def init(
    key: jax.Array, noise_size: int, classes: int, hidden: int, features: int, dtype: jnp.dtype
) -> Params:
    """Returns a generator, see `generate`.

    Args:
      key: Typed PRNG key.
      noise_size: The dimension of the noise.
      classes: The number of classes, `C`.
      hidden: The width of the hidden layer.
      features: The dimension of the features, `d`.
      dtype: The dtype of all arrays.
    """
    keys = jax.random.split(key)
    return {
        "hidden": linear.init(keys[0], noise_size + classes, hidden, dtype)["kernel"],
        "norm": linear.init_norm(hidden, dtype),
        "features": linear.init(keys[1], hidden, features, dtype),
    }


def draw(
    key: jax.Array, label_shares: jax.Array, count: int, noise_size: int, uniform: bool
) -> tuple[jax.Array, jax.Array]:
    """Returns labels `[count]`, drawn by their frequencies, and noise `[count, noise_size]`.

    The noise is uniform in `[0, 1)`, or normal.
    """
    label_key, noise_key = jax.random.split(key)
    labels = jax.random.categorical(label_key, jnp.log(label_shares), shape=(count,))
    sample = jax.random.uniform if uniform else jax.random.normal
    return labels, sample(noise_key, (count, noise_size), label_shares.dtype)


def generate(generator: Params, labels: jax.Array, noise: jax.Array) -> jax.Array:
    """Returns features `[count, d]`: linear, normalized over the batch, ReLU, linear.

    The first layer has no bias: normalization would remove it, and Adam would follow the rounding
    errors in its gradient.
    """
    classes = generator["hidden"].shape[0] - noise.shape[1]
    hot = jax.nn.one_hot(labels, classes, dtype=noise.dtype)
    hidden = jnp.concatenate([noise, hot], axis=1) @ generator["hidden"]
    hidden = linear.normalize(generator["norm"], hidden, axis=0)
    return linear.apply(generator["features"], jax.nn.relu(hidden))


def likeness(features: jax.Array, noise: jax.Array) -> jax.Array:
    """Returns `[]`, `exp(-mean_ij |z_i - z_j| |e_i - e_j|^2)`, with means over coordinates inside.

    The maximum is 1, if different noise yields the same features.
    """
    between = jnp.mean(jnp.abs(features[:, None] - features), axis=-1)
    return jnp.exp(-jnp.mean(between * jnp.mean((noise[:, None] - noise) ** 2, axis=-1)))
