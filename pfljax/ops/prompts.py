"""Prompts, trained tokens of a Transformer: their array in params, and a generator of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pfljax.core.params import join_params, split_params
from pfljax.core.types import Params, Task


class Access(NamedTuple):
    """How the prompts of a task are taken out of params and put in.

    Attributes:
      split: `params -> (prompts [K, d], other params)`.
      join: `(prompts [K, d], other params) -> params`.
    """

    split: Callable[[Params], tuple[jax.Array, Params]]
    join: Callable[[jax.Array, Params], Params]


def access(task: Task) -> Access:
    """Returns how to take the prompts of a task, whose params have one array of them."""
    shapes = jax.eval_shape(task.init, jax.eval_shape(jax.random.key, 0))
    structure = jax.tree.structure(split_params(shapes, task.is_prompt)[0])

    def split(params):
        part, others = split_params(params, task.is_prompt)
        (tokens,) = jax.tree.leaves(part)
        return tokens, others

    def join(tokens, others):
        return join_params(jax.tree.unflatten(structure, [tokens]), others)

    return Access(split, join)


class Generator(NamedTuple):
    """Cross-attention of a client's descriptor to common prompts.

    Attributes:
      base: `[K, d]`, the common prompts.
      query: `[d, d]`.
      key: `[d, d]`.
      value: `[d, d]`.
    """

    base: jax.Array
    query: jax.Array
    key: jax.Array
    value: jax.Array


def init(key: jax.Array, base: jax.Array, spread: float) -> Generator:
    """Returns a generator of prompts around `base` `[K, d]`, for standard normal descriptors.

    Queries and keys have entries of mean square 1, whatever the scale of `base`, so that the
    weights of the attention differ between descriptors.

    Args:
      key: Typed PRNG key.
      base: The common prompts.
      spread: Root mean square of the values relative to that of `base`.
    """
    width = base.shape[-1]
    scale = jnp.sqrt(jnp.mean(base**2))
    scale = jnp.where(scale > 0, scale, 1)
    query, keys, value = (
        jax.random.normal(one, (width, width), base.dtype) * width**-0.5
        for one in jax.random.split(key, 3)
    )
    return Generator(base, query, keys / scale, spread * value)


def generate(generator: Generator, descriptor: jax.Array) -> jax.Array:
    """Returns the prompts `[..., K, d]` of descriptors `[..., K, d]`.

    P_n = P + softmax(d_n q (P k)^T / sqrt(d)) P v
    """
    base, query, key, value = generator
    scores = descriptor @ query @ (base @ key).T * base.shape[-1] ** -0.5
    return base + jax.nn.softmax(scores, axis=-1) @ (base @ value)
