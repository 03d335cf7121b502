"""Fading channels between clients and the server, with reflecting surfaces and imperfect knowledge.

A reconfigurable intelligent surface reflects the signal of a client by `L` elements, each of which
shifts the phase by an angle of the client's choice. Variances and gains are relative to the mean
power gain of the direct path, which is 1.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pfljax.core.types import Context

# Gradient descent on the phases of a surface: number of steps, and step size.
PHASE_STEPS, PHASE_RATE = 50, 1 / 200


class Paths(NamedTuple):
    """The complex gains of the paths from a client to the server in a round.

    Attributes:
      direct: `[]` complex, the gain of the direct path.
      reflected: `[L]` complex, the gain by way of each element of the surface at phase 0.
    """

    direct: jax.Array
    reflected: jax.Array


def rayleigh(key: jax.Array, elements: int, dtype: jnp.dtype) -> Paths:
    """Returns the gains of a client's paths, `h ~ CN(0, 1)` and `g_l = a_l b_l`, both CN(0, 1).

    Args:
      key: Typed PRNG key.
      elements: Number of elements of the surface, `L`.
      dtype: The real dtype; gains are complex numbers of this precision.
    """
    draw = _complex_normal(key, 1 + 2 * elements, dtype)
    return Paths(draw[0], draw[1 : 1 + elements] * draw[1 + elements :])


def estimate(paths: Paths, error: jax.Array | float, key: jax.Array) -> Paths:
    """Returns the paths as the client estimates them: each gain with an error `CN(0, error)`."""
    count = 1 + paths.reflected.shape[0]
    dtype = paths.direct.real.dtype
    noise = _complex_normal(key, count, dtype) * jnp.sqrt(jnp.asarray(error, dtype))
    return Paths(paths.direct + noise[0], paths.reflected + noise[1:])


def effective(paths: Paths, phases: jax.Array) -> jax.Array:
    """Returns `[]` complex, `h + sum_l g_l exp(j phi_l)` for the phases `[L]` in radians."""
    return paths.direct + jnp.sum(paths.reflected * jnp.exp(1j * phases))


def aligned_phases(paths: Paths, target: jax.Array | float) -> jax.Array:
    """Returns `[L]`, phases in radians with which the effective gain is near `target`.

        minimizes |target - h - sum_l g_l exp(j phi_l)|^2 by gradient descent from phi = 0

    Args:
      paths: The gains, or their estimates.
      target: The real gain to reach.
    """
    dtype = paths.direct.real.dtype

    def step(_, phases):
        gap = target - effective(paths, phases)
        turned = 1j * paths.reflected * jnp.exp(1j * phases)  # derivative of the effective gain
        slope = -2 * jnp.real(jnp.conj(gap) * turned)
        return phases - (PHASE_RATE * slope).astype(dtype)

    return jax.lax.fori_loop(0, PHASE_STEPS, step, jnp.zeros(paths.reflected.shape, dtype))


def of_client(
    context: Context,
    elements: int,
    error: jax.Array | float,
    target: jax.Array | float,
    dtype: jnp.dtype,
) -> tuple[jax.Array, jax.Array]:
    """Returns `[]` complex each, the gain of a client's channel in a round and its estimate.

    Args:
      context: The client and its key in the round.
      elements: Number of elements of the surface, whose phases follow the estimate.
      error: The variance of the error of an estimated gain.
      target: The gain at which the phases aim.
      dtype: The real dtype.
    """
    paths = rayleigh(context.child(0).key, elements, dtype)
    known = estimate(paths, error, context.child(1).key)
    phases = aligned_phases(known, target)
    return effective(paths, phases), effective(known, phases)


def inversion(gain: jax.Array, known: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns what the receiver gets of a unit signal, and the power that its sender needs.

        x = conj(k) / |k|^2;   Re(h x), |x|^2,   for the gain h, known to the sender as k

    Args:
      gain: `[]` complex, the gain `h` of the channel.
      known: `[]` complex, the estimate `k` with which the sender inverts it.
    """
    squared = jnp.square(known.real) + jnp.square(known.imag)
    squared = jnp.maximum(squared, jnp.finfo(squared.dtype).tiny)
    return jnp.real(gain * jnp.conj(known)) / squared, 1 / squared


def _complex_normal(key: jax.Array, count: int, dtype: jnp.dtype) -> jax.Array:
    """Returns `[count]` complex, independent draws of CN(0, 1)."""
    parts = jax.random.normal(key, (2, count), dtype) / jnp.sqrt(jnp.asarray(2, dtype))
    return jax.lax.complex(parts[0], parts[1])
