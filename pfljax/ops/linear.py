"""Layers as plain arrays, for additional small networks of methods."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pfljax.core.types import Params


def init(key: jax.Array, inputs: int, outputs: int, dtype: jnp.dtype) -> Params:
    """Returns `{'kernel': [inputs, outputs], 'bias': [outputs]}`, uniform in +-1/sqrt(inputs)."""
    bound = inputs**-0.5
    kernel_key, bias_key = jax.random.split(key)
    return {
        "kernel": jax.random.uniform(kernel_key, (inputs, outputs), dtype, -bound, bound),
        "bias": jax.random.uniform(bias_key, (outputs,), dtype, -bound, bound),
    }


def apply(layer: Params, x: jax.Array) -> jax.Array:
    """Returns `x kernel + bias`: `[B, inputs] -> [B, outputs]`."""
    return x @ layer["kernel"] + layer["bias"]


def apply_layers(layers: list[Params], x: jax.Array) -> jax.Array:
    """Returns `[..., outputs]` of several layers on `[..., inputs]`, with SiLU between them."""
    for layer in layers[:-1]:
        x = jax.nn.silu(apply(layer, x))
    return apply(layers[-1], x)


def column_norms(head: Params) -> jax.Array:
    """Returns `[C]`, the lengths of the columns of the matrix `[d, C]` of a linear head.

    Args:
      head: The head's params: a matrix, and possibly a bias `[C]`, at any paths.
    """
    (matrix,) = (leaf for leaf in jax.tree.leaves(head) if leaf.ndim == 2)
    return jnp.sqrt(jnp.sum(matrix**2, axis=0))


def scale_columns(head: Params, factors: jax.Array) -> Params:
    """Returns a linear head with the columns of its matrix multiplied by `[C]`; its bias stays."""
    return jax.tree.map(lambda leaf: leaf * factors if leaf.ndim == 2 else leaf, head)


def init_norm(size: int, dtype: jnp.dtype) -> Params:
    """Returns `{'scale': [size], 'bias': [size]}`, ones and zeros."""
    return {"scale": jnp.ones(size, dtype), "bias": jnp.zeros(size, dtype)}


def normalize(norm: Params, x: jax.Array, axis: int) -> jax.Array:
    """Returns `x` `[B, size]` with mean 0 and variance 1 along `axis`, times scale, plus bias."""
    centred = x - jnp.mean(x, axis=axis, keepdims=True)
    normal = centred / jnp.sqrt(jnp.var(x, axis=axis, keepdims=True) + 1e-5)
    return normal * norm["scale"] + norm["bias"]
