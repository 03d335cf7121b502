"""Adapters as an overlay: arrays beside the layers of a network, which change what the layers do.

The network is not rewritten. While it is applied, the calls of its layers are intercepted: a layer
with adapter arrays at its path in the params is called through its adapter.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from pfljax.core import Params, Path
from pfljax.core.params import join_params
from pfljax.errors import UserError
from pfljax.models.model import Model

Arrays = dict[str, jax.Array]


class Layer(NamedTuple):
    """A layer of a network, as its call on one example shows it.

    Attributes:
      path: The path of its arrays in the params of the network.
      type: The type of the flax module.
      inputs: The shapes and dtypes of its arguments.
      output: The shapes and dtypes of its results.
      arrays: The shapes and dtypes of its own arrays by their names.
    """

    path: Path
    type: type[nn.Module]
    inputs: tuple[Any, ...]
    output: Any
    arrays: dict[str, jax.ShapeDtypeStruct]


class Kind(NamedTuple):
    """A kind of adapter: the arrays that it adds to a layer, and what they do.

    Attributes:
      names: The names of its arrays; a layer may have some of them only.
      fits: `Layer -> bool`, whether the layer can have this adapter.
      init: `(key, Layer) -> {name: array}`, the initial arrays.
      apply: `(arrays, call, args) -> results`, the call of a layer that has an adapter;
        `call(*args)` is that of the layer alone.
      noun: The layers that fit, as the object of a sentence.
      fixed: The names of arrays that are drawn with the base and are not trained.
      is_prompt: Whether its one array has prompts, tokens `[K, d]`.
    """

    names: tuple[str, ...]
    fits: Callable[[Layer], bool]
    init: Callable[[jax.Array, Layer], Arrays]
    apply: Callable[[Arrays, Callable[..., Any], tuple], Any]
    noun: str
    fixed: tuple[str, ...] = ()
    is_prompt: bool = False


def layers_of(model: Model) -> list[Layer]:
    """Returns all layers of a network in the order in which inputs pass them; nothing is computed.

    Layers without arrays, such as the product of an attention, are among them.

    Raises:
      UserError: The network has no example of its inputs, as it was not made by `from_flax`.
    """
    if model.example is None:
        raise UserError(
            "The network has no example of its inputs, which an adapter needs; make it with "
            "pfljax.from_flax."
        )
    found: dict[Path, Layer] = {}

    def trace(key):
        params, inputs = model.init(key), model.example()
        with _recording("body", found):
            features = model.features(params, inputs)
        with _recording("head", found):
            return model.head(params, features)

    jax.eval_shape(trace, jax.eval_shape(jax.random.key, 0))
    return list(found.values())


def _recording(part: str, found: dict[Path, Layer]) -> Any:
    """Records the layers of a part of a network at their first calls."""

    def shape(x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype) if hasattr(x, "dtype") else x

    def intercept(call, args, kwargs, context):
        module, path = context.module, (part, *context.module.path)
        if context.method_name != "__call__" or path in found:
            return call(*args, **kwargs)
        own = module.variables.get("params", {})
        arrays = {name: shape(x) for name, x in own.items() if hasattr(x, "dtype")}
        inputs = jax.tree.map(shape, args)
        found[path] = Layer(path, type(module), inputs, None, arrays)  # keeps the order of calls
        output = call(*args, **kwargs)
        found[path] = found[path]._replace(output=jax.tree.map(shape, output))
        return output

    return nn.intercept_methods(intercept)


def attach(
    model: Model, kind: Kind, selected: Callable[[Path], bool] = lambda path: path[0] == "body"
) -> Model:
    """Returns a network with adapters beside some of its layers.

    Args:
      model: The network, whose layers may have adapters of other kinds already.
      kind: The kind of adapter.
      selected: `path of a layer -> bool`; of these, layers that the kind does not fit have none.
        The default selects all layers but those of the head.

    Returns:
      The network. Its params are those of `model`, with the arrays of the adapters at the paths of
      their layers; `is_adapter` is True for these, but not for arrays that the kind fixes.

    Raises:
      UserError: No layer is selected that the kind fits.

    Example:
      >>> from pfljax import models
      >>> from pfljax.models import adapters
      >>> model = attach(models.mlp((4,), 3, widths=(8,)), adapters.lora(rank=2))
      >>> params = jax.eval_shape(model.init, jax.random.key(0))
      >>> {name: array.shape for name, array in sorted(params["body"]["Dense_0"].items())}
      {'bias': (8,), 'kernel': (4, 8), 'lora_a': (4, 2), 'lora_b': (2, 8)}
    """
    layers = layers_of(model)
    adapted = [layer for layer in layers if selected(layer.path) and kind.fits(layer)]
    if not adapted:
        fitting = ", ".join("/".join(layer.path) for layer in layers if kind.fits(layer))
        raise UserError(
            f"The adapter needs {kind.noun}, and the selected layers have none; "
            + (
                f"select some of {fitting} in config.adapter.layers."
                if fitting
                else "choose another model, or another config.adapter.name."
            )
        )
    paths = {layer.path for layer in adapted}

    def init(key):
        model_key, adapter_key = jax.random.split(key)
        params = model.init(model_key)
        for number, layer in enumerate(adapted):
            arrays = kind.init(jax.random.fold_in(adapter_key, number), layer)
            inside = functools.reduce(_inside, reversed(layer.path), arrays)
            params = join_params(params, inside)
        return params

    def through_adapters(function):
        def calling(*args):
            with nn.intercept_methods(intercept):
                return function(*args)

        return calling

    def intercept(call, args, kwargs, context):
        module = context.module
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        own = module.variables.get("params", {})
        arrays = {name: own[name] for name in kind.names if name in own}
        if not arrays:
            return call(*args, **kwargs)
        return kind.apply(arrays, lambda *args: call(*args, **kwargs), args)

    def is_own(path):
        return path[:-1] in paths and path[-1] in kind.names

    def is_adapter(path):
        return (is_own(path) and path[-1] not in kind.fixed) or model.is_adapter(path)

    def is_prompt(path):
        return (is_own(path) and kind.is_prompt) or model.is_prompt(path)

    with_arrays = {layer.path for layer in layers if layer.arrays} | paths
    return model._replace(
        init=init,
        features=through_adapters(model.features),
        head=through_adapters(model.head),
        class_features=(
            None if model.class_features is None else through_adapters(model.class_features)
        ),
        observe=None if model.observe is None else through_adapters(model.observe),
        layers=tuple(layer.path for layer in layers if layer.path in with_arrays),
        is_adapter=is_adapter,
        is_prompt=is_prompt,
    )


def _inside(node: Params, name: str) -> Params:
    return {name: node}
