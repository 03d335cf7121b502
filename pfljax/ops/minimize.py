"""Minimizing an objective that draws its own samples, with steps of an optimizer."""

from __future__ import annotations

from collections.abc import Callable

import jax
import optax

from pfljax.core.types import Params, PyTree


def minimize(
    objective: Callable[[Params, jax.Array], jax.Array],
    params: Params,
    optimizer: optax.GradientTransformation,
    optimizer_state: PyTree,
    keys: jax.Array,
) -> tuple[Params, PyTree]:
    """Returns params and optimizer state after one step for each key.

        params <- params + optimizer(grad_params objective(params, key)),   for each key in order

    Args:
      objective: `(params, key) -> []`; it may ignore the key.
      params: The initial params, any pytree of float arrays.
      optimizer: Any optax optimizer.
      optimizer_state: The initial state of the optimizer.
      keys: `[steps]`, typed PRNG keys.

    Returns:
      The params and the optimizer's state after the last step.

    Example:
      >>> sgd, start = optax.sgd(0.5), jax.numpy.array(4.0)
      >>> keys = jax.random.split(jax.random.key(0), 2)
      >>> float(minimize(lambda x, key: (x - 1) ** 2 / 2, start, sgd, sgd.init(start), keys)[0])
      1.75
    """

    def step(carry, key):
        params, optimizer_state = carry
        slope = jax.grad(objective)(params, key)
        updates, optimizer_state = optimizer.update(slope, optimizer_state, params)
        return (optax.apply_updates(params, updates), optimizer_state), ()

    carry, _ = jax.lax.scan(step, (params, optimizer_state), keys)
    return carry
