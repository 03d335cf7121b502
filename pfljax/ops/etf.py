"""Fixed classifiers whose class vectors point apart: equiangular tight frames, also sparse ones.

Shapes in the docstrings: `d` features, `C` classes.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from pfljax.ops import linear_algebra

# The largest cosine whose angle has a gradient; that of the angle is infinite at 1.
_LARGEST_COSINE = 0.99999


def simplex(key: jax.Array, features: int, classes: int, dtype: jnp.dtype) -> jax.Array:
    """Returns `[d, C]`, a simplex equiangular tight frame in a random orientation.

        sqrt(C / (C - 1)) P (I - 1 1^T / C),   P^T P = I

    Its columns have length 1 and pairwise cosines `-1 / (C - 1)`. With fewer features than classes
    there is no such `P`, and `P P^T = I` in its place.

    Args:
      key: Typed PRNG key.
      features: `d`.
      classes: `C`.
      dtype: The dtype of the frame.
    """
    tall = (max(features, classes), min(features, classes))
    basis = linear_algebra.orthonormal(jax.random.normal(key, tall, dtype))
    basis = basis if features >= classes else basis.T
    centred = basis - jnp.mean(basis, axis=1, keepdims=True)
    return jnp.sqrt(classes / max(classes - 1, 1)).astype(dtype) * centred


def random_mask(
    key: jax.Array, features: int, classes: int, sparsity: float | jax.Array
) -> jax.Array:
    """Returns `[d, C]` bool, False for a random fraction `sparsity` of all entries.

    Every column keeps at least one entry, so that no class is without a vector.

    Args:
      key: Typed PRNG key.
      features: `d`.
      classes: `C`.
      sparsity: `[]`, the fraction, rounded to a whole number of entries.
    """
    ranks = jax.random.permutation(key, features * classes).reshape(features, classes)
    dropped = jnp.round(sparsity * ranks.size).astype(jnp.int32)
    return (ranks >= dropped) | (ranks == jnp.max(ranks, axis=0))


def spread_loss(frame: jax.Array, norm: float | jax.Array) -> jax.Array:
    """Returns `[]`, a loss for columns of equal length with the largest angles to their nearest.

        sum_c (||m_c|| - norm)^2 - mean_c min_{c' != c} angle(m_c, m_c')

    Args:
      frame: `[d, C]`, the columns `m_c`.
      norm: The length.
    """
    squares = jnp.sum(frame**2, axis=0)
    lengths = jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)
    unit = frame / jnp.where(lengths > 0, lengths, 1)
    cosines = jnp.where(jnp.eye(frame.shape[1], dtype=bool), -1, unit.T @ unit)
    # The gradient is that of one nearest column, also where several are equally near.
    nearest = jnp.argmax(cosines, axis=1)
    largest = jnp.take_along_axis(cosines, nearest[:, None], axis=1)
    angles = jnp.arccos(jnp.clip(largest, -_LARGEST_COSINE, _LARGEST_COSINE))
    return jnp.sum((lengths - norm) ** 2) - jnp.mean(angles)


def spread(
    frame: jax.Array,
    kept: jax.Array,
    norm: float | jax.Array,
    rate: float | jax.Array,
    steps: int | jax.Array,
) -> jax.Array:
    """Returns `[d, C]`, a sparse frame after steps of Adam on `spread_loss`.

    Args:
      frame: `[d, C]`, the frame to start from.
      kept: `[d, C]` bool, the entries that are trained; the others are zero.
      norm: The length of the columns.
      rate: The learning rate.
      steps: Number of steps.
    """
    optimizer, start = optax.adam(rate), frame * kept

    def step(_, state):
        frame, moments = state
        slope = jax.grad(spread_loss)(frame, norm) * kept
        updates, moments = optimizer.update(slope, moments)
        return optax.apply_updates(frame, updates), moments

    return jax.lax.fori_loop(0, steps, step, (start, optimizer.init(start)))[0]


def sparse(
    key: jax.Array,
    features: int,
    classes: int,
    dtype: jnp.dtype,
    sparsity: float | jax.Array,
    norm: float | jax.Array,
    rate: float | jax.Array,
    steps: int | jax.Array,
) -> jax.Array:
    """Returns `[d, C]`, a random simplex frame with a random mask after `spread`.

    Args:
      key: Typed PRNG key.
      features: `d`.
      classes: `C`.
      dtype: The dtype of the frame.
      sparsity: As in `random_mask`.
      norm: The length of the columns, as in `spread`.
      rate: The learning rate of `spread`.
      steps: Number of steps of `spread`.
    """
    frame_key, mask_key = jax.random.split(key)
    frame = simplex(frame_key, features, classes, dtype)
    kept = random_mask(mask_key, features, classes, sparsity)
    return spread(frame, kept, norm, rate, steps)
