"""A network as pure functions, with its body and its head apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict

from pfljax.core import Path
from pfljax.errors import UserError
from pfljax.models.layers import BatchNorm

NORMALIZATION = (BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm, nn.RMSNorm)


class Model(NamedTuple):
    """A network; its parameters are a nested dict with the keys 'body' and 'head'.

    Where a function takes `mask` `[B]`, the network trains: batch normalization uses the statistics
    of the examples for which it is True. None means the running ones.

    Attributes:
      init: `key -> parameters`.
      features: `(parameters, inputs [B, ...], mask=None) -> [B, d]`, the body.
      head: `(parameters, features [B, d], mask=None) -> outputs`.
      is_head: `path -> bool`.
      num_features: `d`.
      layers: where each layer's arrays stand, in the order in which inputs pass them.
      is_norm: `path -> bool`, whether the array is of a normalization layer.
      observe: `(parameters, inputs, mask) -> statistics`, the running statistics after training on
        these examples, a part of the nested dict; None for a network without batch normalization.
    """

    init: Callable[[jax.Array], Any]
    features: Callable[..., jax.Array]
    head: Callable[..., jax.Array]
    is_head: Callable[[Path], bool]
    num_features: int
    layers: tuple[Path, ...]
    is_norm: Callable[[Path], bool]
    observe: Callable[..., Any] | None


class Split(nn.Module):
    """Two modules in a row: `head(body(x))`."""

    body: nn.Module
    head: nn.Module

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.body(x))


def layer_types(network: nn.Module, input_shape: tuple[int, ...]) -> dict[Path, type[nn.Module]]:
    """Returns path and type of each module that owns arrays, in the order in which inputs pass.

    Raises:
      UserError: the network keeps arrays that are no parameters, which nobody would carry on.
    """
    types = {}

    def record(call, args, kwargs, context):
        types.setdefault(context.module.path, type(context.module))
        return call(*args, **kwargs)

    def start():
        return network.init(jax.random.key(0), jnp.zeros((1, *input_shape)))

    with nn.intercept_methods(record):
        variables = jax.eval_shape(start)
    if others := set(variables) - {"params"}:
        raise UserError(
            f"The network keeps arrays in {sorted(others)} beside its parameters; take the layers "
            "of pfljax.models.layers, such as BatchNorm, or GroupNorm in place of flax's BatchNorm."
        )
    leaves = jax.tree_util.tree_leaves_with_path(variables["params"])
    owners = {tuple(part.key for part in path[:-1]) for path, _ in leaves}
    return {path: kind for path, kind in types.items() if path in owners}


def from_flax(body: nn.Module, head: nn.Module, input_shape: tuple[int, ...]) -> Model:
    """Makes a `Model` of two flax modules.

    Args:
      body: `[B, *input_shape] -> [B, d]`; it may have no parameters.
      head: `[B, d] -> outputs`.
      input_shape: of one example.

    Raises:
      UserError: a module keeps arrays that are no parameters.
    """
    network = Split(body, head)
    types = layer_types(network, input_shape)
    norms = {path for path, kind in types.items() if issubclass(kind, NORMALIZATION)}
    watchers = [path for path, kind in types.items() if issubclass(kind, BatchNorm)]
    watching = {path[0] for path in watchers}

    def init(key):
        return network.init(key, jnp.zeros((1, *input_shape)))["params"]

    def variables(parameters, part, mask):
        """What flax wants for one part: its arrays and, in training, the mask at each BatchNorm."""
        arrays = {"params": parameters.get(part, {})}
        if mask is not None:
            masks = {(*path[1:], "mask"): mask for path in watchers if path[0] == part}
            arrays["examples"] = unflatten_dict(masks)
        return arrays

    def features(parameters, inputs, mask=None):
        return body.apply(variables(parameters, "body", mask), inputs)

    def apply_head(parameters, features, mask=None):
        return head.apply(variables(parameters, "head", mask), features)

    def observe(parameters, inputs, mask):
        if not watching <= set(parameters):
            raise ValueError(
                "Running statistics are those of a model with body and head; for a dict of models "
                "take LocalTraining.of_models."
            )
        seen, x = {}, inputs
        for part, module in (("body", body), ("head", head))[: 2 if "head" in watching else 1]:
            x, state = module.apply(variables(parameters, part, mask), x, mutable=["observed"])
            seen.update({part: state["observed"]} if part in watching else {})
        return seen

    def features_of_one():
        return features(init(jax.random.key(0)), jnp.zeros((1, *input_shape)))

    return Model(
        init=init,
        features=features,
        head=apply_head,
        is_head=lambda path: path[0] == "head",
        num_features=jax.eval_shape(features_of_one).shape[1],
        layers=tuple(types),
        is_norm=lambda path: path[:-1] in norms,
        observe=observe if watchers else None,
    )
