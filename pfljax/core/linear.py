"""A fully connected layer as plain arrays, for the small networks that a method adds."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pfljax.core.types import Model


def init(key: jax.Array, inputs: int, outputs: int, dtype: jnp.dtype) -> Model:
    """Returns `{'kernel': [inputs, outputs], 'bias': [outputs]}`, uniform in +-1/sqrt(inputs)."""
    bound = inputs**-0.5
    kernel_key, bias_key = jax.random.split(key)
    return {
        "kernel": jax.random.uniform(kernel_key, (inputs, outputs), dtype, -bound, bound),
        "bias": jax.random.uniform(bias_key, (outputs,), dtype, -bound, bound),
    }


def apply(layer: Model, x: jax.Array) -> jax.Array:
    """Returns `x kernel + bias`: `[B, inputs] -> [B, outputs]`."""
    return x @ layer["kernel"] + layer["bias"]
