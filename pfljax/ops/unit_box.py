"""Minimization of a smooth function of a few numbers between 0 and 1, inside a compiled round."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

# The fractions of a step that are tried: the first that does not increase the objective, up to its
# rounding, is taken. The best one would be chosen by rounding alone where the steps are small.
_FRACTIONS, _ROUNDING = (*(0.5**number for number in range(6)), 0.0), 1e-5


def minimize(
    objective: Callable[[jax.Array], jax.Array],
    start: jax.Array,
    steps: int = 10,
    damping: float = 0.3,
) -> jax.Array:
    """Returns `[n]`, the point after some damped Newton steps in the box `[0, 1]^n`.

        x <- clip(x - a (|H| + damping I)^-1 g),   a the largest fraction that does not increase f

    No coordinate changes by more than 1 in a step. A coordinate on the boundary stays there while
    the gradient points out of the box. `damping` bounds the effect of the gradient's rounding
    errors along directions in which the objective hardly changes.

    Args:
      objective: `[n] -> []`, the function `f`, twice differentiable.
      start: `[n]`, the first point.
      steps: Number of steps.
      damping: What is added to the absolute curvatures.
    """
    fractions = jnp.array(_FRACTIONS, start.dtype)[:, None]

    def step(number, point):
        slope, curvature = jax.grad(objective)(point), jax.hessian(objective)(point)
        outwards = ((point <= 0) & (slope > 0)) | ((point >= 1) & (slope < 0))
        free = ~outwards
        eigenvalues, vectors = jnp.linalg.eigh(jnp.where(free[:, None] & free, curvature, 0))
        along = vectors.T @ jnp.where(free, slope, 0)
        direction = jnp.where(free, vectors @ (along / (jnp.abs(eigenvalues) + damping)), 0)
        direction = direction / jnp.maximum(jnp.max(jnp.abs(direction)), 1)
        candidates = jnp.clip(point - fractions * direction, 0, 1)
        values = jax.lax.map(objective, candidates)
        allowed = values[-1] + _ROUNDING * jnp.maximum(jnp.abs(values[-1]), 1)
        return candidates[jnp.argmax(values <= allowed)]

    return jax.lax.fori_loop(0, steps, step, start)
