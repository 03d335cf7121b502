"""A network as pure functions, with its body and its head apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from pfljax.core import Path


class Model(NamedTuple):
    """A network; its parameters are a nested dict with the keys 'body' and 'head'.

    Attributes:
      init: `key -> parameters`.
      features: `(parameters, inputs [B, ...]) -> [B, d]`, the body.
      head: `(parameters, features [B, d]) -> outputs`.
      is_head: `path -> bool`.
      num_features: `d`.
      layers: where each layer's arrays stand, in the order in which inputs pass them.
    """

    init: Callable[[jax.Array], Any]
    features: Callable[[Any, jax.Array], jax.Array]
    head: Callable[[Any, jax.Array], jax.Array]
    is_head: Callable[[Path], bool]
    num_features: int
    layers: tuple[Path, ...]


class Split(nn.Module):
    """Two modules in a row: `head(body(x))`."""

    body: nn.Module
    head: nn.Module

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.body(x))


def layer_types(network: nn.Module, input_shape: tuple[int, ...]) -> dict[Path, type[nn.Module]]:
    """Returns path and type of each module that owns arrays, in the order in which inputs pass."""
    types, owners = {}, set()

    def record(call, args, kwargs, context):
        types.setdefault(context.module.path, type(context.module))
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        example = jnp.zeros((1, *input_shape))
        variables = jax.eval_shape(network.init, jax.random.key(0), example)
    for path, _ in jax.tree_util.tree_leaves_with_path(variables):
        owners.add(tuple(part.key for part in path[1:-1]))
    return {path: kind for path, kind in types.items() if path in owners}


def from_flax(body: nn.Module, head: nn.Module, input_shape: tuple[int, ...]) -> Model:
    """Makes a `Model` of two flax modules.

    Args:
      body: `[B, *input_shape] -> [B, d]`; it may have no parameters.
      head: `[B, d] -> outputs`.
      input_shape: of one example.
    """
    network = Split(body, head)

    def init(key):
        return network.init(key, jnp.zeros((1, *input_shape)))["params"]

    def features(parameters, inputs):
        return body.apply({"params": parameters.get("body", {})}, inputs)

    def apply_head(parameters, features):
        return head.apply({"params": parameters["head"]}, features)

    def features_of_one():
        return features(init(jax.random.key(0)), jnp.zeros((1, *input_shape)))

    num_features = jax.eval_shape(features_of_one).shape[1]
    layers = tuple(layer_types(network, input_shape))
    return Model(init, features, apply_head, lambda path: path[0] == "head", num_features, layers)
