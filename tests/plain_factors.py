"""FedPara and pFedPara written from the paper: kernels of factors on small tasks.

Nothing here comes from `pfljax.ops.hadamard`. `OFFSETS` has what is added to the second kernel of a
product by each method.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import federation
import jax
import jax.numpy as jnp
import numpy as np
import optax
import plain
import plain_loops
import quadratics

from pfljax import core
from pfljax.algorithms import ALGORITHMS

OFFSETS = {"fedpara": 0.0, "pfedpara": 1.0}
RANK = 2


def kernel_of(factors: dict, offset: float) -> jax.Array:
    """The product of the two low-rank kernels."""
    first, second = (factors[f"y{n}"] @ factors[f"x{n}"].T for n in (1, 2))
    return first * (second + offset)


def composed(model: Any, offset: float) -> Any:
    """A model with its kernels, from one with factors."""
    if not isinstance(model, dict):
        return model
    if "x1" in model:
        return kernel_of(model, offset)
    return {name: composed(child, offset) for name, child in model.items()}


def matrix_task() -> core.Task:
    """The quadratic task of `quadratics` with the four weights in a kernel of two by two."""

    def losses(model, batch, key, train=True):
        return 0.5 * jnp.sum((model["head"]["kernel"].ravel() - batch.inputs) ** 2, axis=-1)

    def init(key):
        return {"head": {"kernel": jax.random.normal(key, (2, 2))}}

    return quadratics.quadratic()._replace(
        init=init,
        losses=losses,
        loss=lambda model, batch, key, train=True: core.mean_over(
            losses(model, batch, key), batch.mask
        ),
        predict=lambda model, inputs, mask=None, key=None: inputs - model["head"]["kernel"].ravel(),
    )


@functools.cache
def run_on_matrices(name: str, rounds: int, rate: float = quadratics.ETA) -> federation.Outcome:
    """Runs a method with rank 1 on `matrix_task` with all clients; a rate of 0 gives the start."""
    local = core.LocalTraining(optax.sgd(rate), batch_size=8, epochs=quadratics.STEPS)
    method = ALGORITHMS[name](matrix_task(), local, rank=1)
    return federation.run(
        method,
        data=quadratics.DATA,
        plan=quadratics.PLAN,
        rounds=rounds,
        score=matrix_task(),
        devices=2,
    )


def steps_on_matrices(factors: dict, target: np.ndarray, offset: float) -> dict:
    """Gradient steps on `1/2 ||W - target||^2` of the factors, derived by hand."""
    f = dict(factors)
    for _ in range(quadratics.STEPS):
        first, second = f["y1"] @ f["x1"].T, f["y2"] @ f["x2"].T + offset
        gap = first * second - target.reshape(2, 2)
        slopes = {
            **{"y1": (gap * second) @ f["x1"], "x1": (gap * second).T @ f["y1"]},
            **{"y2": (gap * first) @ f["x2"], "x2": (gap * first).T @ f["y2"]},
        }
        f = {key: f[key] - quadratics.ETA * slopes[key] for key in f}
    return f


def train_with_batch_norm(model: Any, k: int, offset: float) -> Any:
    """Local training of `mlp_bn` with factors in the place of its kernels."""

    def loss(model, x, y):
        return plain.loss(composed(model, offset), x, y)

    slope = jax.jit(jax.grad(loss))
    for _ in range(plain.EPOCHS):
        for u, v in plain.batches(*plain.examples(k)):
            seen = plain.observed(composed(model, offset), u)
            model = plain.with_statistics(plain.axpy(-plain.RATE, slope(model, u, v), model), seen)
    return jax.tree.map(np.asarray, model)


def slope_of(example: Any, offset: float) -> Callable[..., np.ndarray]:
    """Returns the gradient of the loss of `plain_loops`, of all factors in one vector.

    Args:
      example: A model with factors, for its structure and shapes.
      offset: Added to the second kernel of each product.
    """
    leaves, structure = jax.tree.flatten(example)
    ends = np.cumsum([leaf.size for leaf in leaves])[:-1]

    def loss(vector, x, y):
        parts = zip(jnp.split(vector, ends), leaves, strict=True)
        model = jax.tree.unflatten(structure, [part.reshape(leaf.shape) for part, leaf in parts])
        whole = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(composed(model, offset))])
        return plain_loops.loss(whole, x, y)

    return jax.jit(jax.grad(loss))
