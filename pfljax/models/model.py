"""A network as pure functions, with its body and its head apart."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict

from pfljax.core import Path, tree
from pfljax.errors import UserError
from pfljax.models.layers import STATISTICS, BatchNorm, GroupNorm

NORMALIZATION = (
    *(BatchNorm, GroupNorm),
    *(nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm, nn.RMSNorm),
)


class Model(NamedTuple):
    """A network; its parameters are a nested dict with the keys 'body' and 'head'.

    Where a function takes `mask` `[B]`, the network trains: batch normalization uses the statistics
    of the examples for which it is True. None means the running ones.

    Attributes:
      init: `key -> parameters`.
      features: `(parameters, inputs [B, ...], mask=None) -> [B, d]`, the body.
      head: `(parameters, features [B, d], mask=None) -> outputs`.
      is_head: `path -> bool`.
      num_features: `d`; 0 where the features of an example are no row, but one for each position.
      layers: where each layer's arrays stand, in the order in which inputs pass them.
      is_norm: `path -> bool`, whether the array is of a normalization layer.
      is_statistic: `path -> bool`, whether the array is a running statistic.
      observe: `(parameters, inputs, mask) -> statistics`, the running statistics after training on
        these examples, a part of the nested dict; None for a network without batch normalization.
      reads_ids: whether inputs are ids, int32, rather than measurements.
    """

    init: Callable[[jax.Array], Any]
    features: Callable[..., jax.Array]
    head: Callable[..., jax.Array]
    is_head: Callable[[Path], bool]
    num_features: int
    layers: tuple[Path, ...]
    is_norm: Callable[[Path], bool]
    is_statistic: Callable[[Path], bool]
    observe: Callable[..., Any] | None
    reads_ids: bool = False


def compute_in(model: Model, dtype: jax.typing.DTypeLike) -> Model:
    """Returns a model that computes in another type than that in which its parameters are kept.

    Products, activations and their gradients are computed in `dtype`; normalizations, parameters,
    features, outputs and the gradients of parameters keep the parameters' own.

    Args:
      model: a network.
      dtype: such as bfloat16.
    """

    def cast(parameters):
        def one(path, leaf):
            return leaf if model.is_norm(tuple(part.key for part in path)) else leaf.astype(dtype)

        return jax.tree_util.tree_map_with_path(one, parameters)

    def features(parameters, inputs, mask=None):
        inputs = inputs if model.reads_ids else inputs.astype(dtype)
        return model.features(cast(parameters), inputs, mask).astype(tree.dtype(parameters))

    def head(parameters, features, mask=None):
        outputs = model.head(cast(parameters), features.astype(dtype), mask)
        return outputs.astype(tree.dtype(parameters))

    def observe(parameters, inputs, mask):
        return model.observe(cast(parameters), inputs.astype(dtype), mask)

    observed = None if model.observe is None else observe
    return model._replace(features=features, head=head, observe=observed)


class Split(nn.Module):
    """Two modules in a row: `head(body(x))`, or `head(body(x), array)` of the body's `tied` array.

    Attributes:
      body: the first.
      head: the second.
      tied: where the body keeps an array that the head uses too; `()` for none.
    """

    body: nn.Module
    head: nn.Module
    tied: Path = ()

    def __call__(self, x: jax.Array) -> jax.Array:
        features = self.body(x)
        if not self.tied:
            return self.head(features)
        return self.head(features, _at(self.tied, self.body.variables["params"]))


def _at(path: Path, arrays: Any) -> jax.Array:
    return functools.reduce(lambda node, name: node[name], path, arrays)


def layer_types(network: nn.Module, example: jax.Array) -> dict[Path, type[nn.Module]]:
    """Returns path and type of each module that owns arrays, in the order in which inputs pass.

    Raises:
      UserError: the network keeps arrays that are no parameters, which nobody would carry on.
    """
    types = {}

    def record(call, args, kwargs, context):
        types.setdefault(context.module.path, type(context.module))
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        # Not even the key is made: that would compile, before a mistake is told.
        variables = jax.eval_shape(lambda x: network.init(jax.random.key(0), x), example)
    if others := set(variables) - {"params"}:
        raise UserError(
            f"The network keeps arrays in {sorted(others)} beside its parameters; take the layers "
            "of pfljax.models.layers, such as BatchNorm, or GroupNorm in place of flax's BatchNorm."
        )
    leaves = jax.tree_util.tree_leaves_with_path(variables["params"])
    owners = {tuple(part.key for part in path[:-1]) for path, _ in leaves}
    return {path: kind for path, kind in types.items() if path in owners}


def from_flax(
    body: nn.Module,
    head: nn.Module,
    input_shape: tuple[int, ...],
    *,
    reads_ids: bool = False,
    tied: Path = (),
) -> Model:
    """Makes a `Model` of two flax modules.

    Args:
      body: `[B, *input_shape] -> [B, d]`, or `[B, T, d]`; it may have no parameters.
      head: `[B, d] -> outputs`, or `[B, T, d] -> outputs`.
      input_shape: of one example.
      reads_ids: whether inputs are ids, int32.
      tied: where the body keeps an array that the head takes as second argument, such as an
        embedding; it stays the body's.

    Raises:
      UserError: a module keeps arrays that are no parameters.
    """
    network = Split(body, head, tied)

    def example():
        return jnp.zeros((1, *input_shape), jnp.int32 if reads_ids else None)

    types = layer_types(network, jax.eval_shape(example))
    norms = {path for path, kind in types.items() if issubclass(kind, NORMALIZATION)}
    watchers = [path for path, kind in types.items() if issubclass(kind, BatchNorm)]
    watching = {path[0] for path in watchers}

    def init(key):
        return network.init(key, example())["params"]

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
        arrays = [_at(tied, parameters["body"])] if tied else []
        return head.apply(variables(parameters, "head", mask), features, *arrays)

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

    of_one = jax.eval_shape(lambda: features(init(jax.random.key(0)), example()))

    return Model(
        init=init,
        features=features,
        head=apply_head,
        is_head=lambda path: path[0] == "head",
        num_features=of_one.shape[1] if len(of_one.shape) == 2 else 0,
        layers=tuple(types),
        is_norm=lambda path: path[:-1] in norms,
        is_statistic=lambda path: path[:-1] in watchers and path[-1] in STATISTICS,
        observe=observe if watchers else None,
        reads_ids=reads_ids,
    )
