"""Minimization of a smooth function of a few numbers between 0 and 1, inside a compiled round."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pfljax.ops import linear_algebra

# A step is halved until it does not increase the objective, up to its rounding, and at most so
# often. The best fraction would be chosen by rounding alone where the steps are small.
_HALVINGS, _ROUNDING = 5, 1e-5


class Expansion(NamedTuple):
    """A function of `n` numbers near a point, up to its second derivatives.

    Attributes:
      value: `[]`.
      slope: `[n]`, the gradient.
      curvature: `[n, n]`, the Hessian.
    """

    value: jax.Array
    slope: jax.Array
    curvature: jax.Array


def expand(objective: Callable[[jax.Array], jax.Array], point: jax.Array) -> Expansion:
    """Returns the value, the gradient and the Hessian of a function at a point `[n]`."""
    value, slope = jax.value_and_grad(objective)(point)
    return Expansion(value, slope, jax.hessian(objective)(point))


def minimize(
    objective: Callable[[jax.Array], jax.Array],
    start: jax.Array,
    steps: int = 10,
    damping: float = 0.3,
    *,
    expansion: Callable[[jax.Array], Expansion] | None = None,
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
      expansion: `[n] -> Expansion` of the objective, if it has no reverse derivative, as sums in
        loops of a dynamic length do not; None differentiates the objective.
    """
    expansion = functools.partial(expand, objective) if expansion is None else expansion

    def step(number, point):
        value, slope, curvature = expansion(point)
        outwards = ((point <= 0) & (slope > 0)) | ((point >= 1) & (slope < 0))
        free = ~outwards
        eigenvalues, vectors = linear_algebra.eigh(jnp.where(free[:, None] & free, curvature, 0))
        along = vectors.T @ jnp.where(free, slope, 0)
        direction = jnp.where(free, vectors @ (along / (jnp.abs(eigenvalues) + damping)), 0)
        direction = direction / jnp.maximum(jnp.max(jnp.abs(direction)), 1)
        allowed = value + _ROUNDING * jnp.maximum(jnp.abs(value), 1)

        def moved(halvings):
            return jnp.clip(point - 0.5**halvings * direction, 0, 1)

        def increases(halvings):
            return (halvings <= _HALVINGS) & ~(objective(moved(halvings)) <= allowed)

        halvings = jax.lax.while_loop(increases, lambda halvings: halvings + 1, 0)
        return jnp.where(halvings <= _HALVINGS, moved(halvings), point)

    return jax.lax.fori_loop(0, steps, step, start)
