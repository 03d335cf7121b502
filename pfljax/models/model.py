"""A network as pure functions, separated into body and head."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict

from pfljax.core import Path, streams, tree
from pfljax.errors import UserError
from pfljax.models.layers import STATISTICS, BatchNorm, GroupNorm

NORMALIZATION = (
    *(BatchNorm, GroupNorm),
    *(nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm, nn.RMSNorm),
)

# The name of the modules whose arrays are `Model.is_adapter`.
ADAPTER = "adapter"


class Model(NamedTuple):
    """A network; its params are a nested dict with the keys 'body' and 'head'.

    If a function gets a `mask` `[B]`, the network is in training mode: batch normalization uses the
    statistics of the examples where the mask is True. None means the running statistics. If a
    function gets a `key`, a typed PRNG key, layers with dropout drop. None means that they do not.

    Attributes:
      init: `key -> params`.
      features: `(params, inputs [B, ...], mask=None, key=None) -> [B, d]`, the body.
      head: `(params, features [B, d], mask=None, key=None) -> outputs`.
      is_head: `path -> bool`, whether an array belongs to the head.
      num_features: `d`; 0 if an example has one row of features for each position.
      layers: The path of each layer's arrays, in the order in which inputs pass the layers.
      is_norm: `path -> bool`, whether an array belongs to a normalization layer.
      is_statistic: `path -> bool`, whether an array is a running statistic.
      observe: `(params, inputs, mask) -> statistics`, the running statistics after training on
        these examples, as a part of the nested dict; None for a network without batch
        normalization.
      reads_ids: Whether inputs are ids, int32, instead of numeric inputs; for inputs that are a
        dict, one value for all of them or a dict with the same names.
      input_shape: The shape of an example; `()` if examples are ids or dicts of arrays.
      is_adapter: `path -> bool`, whether an array belongs to an adapter, a module of the network
        with the name 'adapter'.
      is_prompt: `path -> bool`, whether an array has prompts, which `adapters.prompts` inserts.
      class_features: `params -> [C, d]`, a row for each class with which the features of an example
        are compared; None for a network whose head is none of such rows.

    Example:
      >>> from pfljax.models import mlp
      >>> model = mlp((4,), 3, widths=(8,))
      >>> params = model.init(jax.random.key(0))
      >>> model.head(params, model.features(params, jnp.zeros((2, 4)))).shape
      (2, 3)
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
    reads_ids: bool | Mapping[str, bool] = False
    input_shape: tuple[int, ...] = ()
    is_adapter: Callable[[Path], bool] = lambda path: False
    is_prompt: Callable[[Path], bool] = lambda path: False
    class_features: Callable[[Any], jax.Array] | None = None


def map_measurements(
    function: Callable[..., jax.Array], inputs: Any, reads_ids: bool | Mapping[str, bool], *others
) -> Any:
    """Returns inputs with a function applied to those that are measurements; ids stay as they are.

    Args:
      function: `(input, *others) -> input`.
      inputs: One array, or a dict of arrays.
      reads_ids: `Model.reads_ids`.
      *others: Further arguments; where inputs are a dict, one for all or a dict by their names.

    Example:
      >>> map_measurements(lambda x, y: x / y, {'a': 6, 'b': 6}, {'a': False, 'b': True}, 3)
      {'a': 2.0, 'b': 6}
    """
    if isinstance(inputs, Mapping):

        def named(value, name):
            return value[name] if isinstance(value, Mapping) else value

        return {
            name: map_measurements(
                function, one, named(reads_ids, name), *(named(other, name) for other in others)
            )
            for name, one in inputs.items()
        }
    return inputs if reads_ids else function(inputs, *others)


def zero_example(input_shape: Any, reads_ids: bool | Mapping[str, bool]) -> Any:
    """Returns a batch of one example of zeros, as a network takes it.

    Args:
      input_shape: Shape of one example, or a dict of shapes.
      reads_ids: `Model.reads_ids`.
    """
    if isinstance(input_shape, Mapping):
        return {
            name: zero_example(
                shape, reads_ids[name] if isinstance(reads_ids, Mapping) else reads_ids
            )
            for name, shape in input_shape.items()
        }
    return jnp.zeros((1, *input_shape), jnp.int32 if reads_ids else None)


def compute_in(model: Model, dtype: jax.typing.DTypeLike) -> Model:
    """Returns a model that computes in another dtype than that of its params.

    Products, activations and their gradients are computed in `dtype`; normalizations, params,
    features, outputs and the gradients of params keep the dtype of the params.

    Args:
      model: The network.
      dtype: The dtype of the computation, such as bfloat16.
    """

    def cast(params):
        def one(path, leaf):
            return leaf if model.is_norm(tuple(part.key for part in path)) else leaf.astype(dtype)

        return jax.tree_util.tree_map_with_path(one, params)

    def shortened(inputs):
        return map_measurements(lambda x: x.astype(dtype), inputs, model.reads_ids)

    def features(params, inputs, mask=None, key=None):
        found = model.features(cast(params), shortened(inputs), mask, key)
        return found.astype(tree.dtype(params))

    def head(params, features, mask=None, key=None):
        outputs = model.head(cast(params), features.astype(dtype), mask, key)
        return outputs.astype(tree.dtype(params))

    def observe(params, inputs, mask):
        return model.observe(cast(params), shortened(inputs), mask)

    def class_features(params):
        return model.class_features(cast(params)).astype(tree.dtype(params))

    return model._replace(
        features=features,
        head=head,
        observe=None if model.observe is None else observe,
        class_features=None if model.class_features is None else class_features,
    )


class Split(nn.Module):
    """A composition of two modules: `head(body(x))`, or `head(body(x), tied array of the body)`.

    Attributes:
      body: The first module.
      head: The second module.
      tied: The path of an array of the body that the head uses too; `()` for none.
    """

    body: nn.Module
    head: nn.Module
    tied: Path = ()

    def __call__(self, x: jax.Array) -> jax.Array:
        features = self.body(x)
        if not self.tied:
            return self.head(features)
        return self.head(features, _at(self.tied, self.body.variables["params"]))


# Layers with dropout, and the attribute with its rate.
_DROPOUT = {nn.Dropout: "rate", nn.MultiHeadDotProductAttention: "dropout_rate"}

_RANDOM = (
    "The network draws additional random numbers, but pfljax passes keys to networks for dropout "
    "only; remove them, or use nn.Dropout."
)
_DETERMINISTIC = (
    "The network sets `deterministic` of {}; omit it, because pfljax applies dropout in training "
    "and not in evaluation."
)
_BOTH = (
    "The network has dropout and batch normalization, whose running statistics would be those "
    "without dropout; use GroupNorm instead of batch normalization."
)
_OTHER_ARRAYS = (
    "The network has arrays in {} beside its parameters; use the layers of pfljax.models.layers, "
    "such as BatchNorm, or GroupNorm instead of flax's BatchNorm."
)


def _at(path: Path, arrays: Any) -> jax.Array:
    return functools.reduce(lambda node, name: node[name], path, arrays)


def shapes_of(arrays: Any) -> Any:
    """Returns the shape of an array, or the shapes of a dict of arrays by their names."""
    if isinstance(arrays, Mapping):
        return {name: shapes_of(array) for name, array in arrays.items()}
    return tuple(arrays.shape)


def _dropping(key: jax.Array | None) -> contextlib.AbstractContextManager:
    """Sets `deterministic` of layers with dropout: False if there is a key, True if it is None."""

    def call(apply, args, kwargs, context):
        if _needs_mode(context, args, kwargs):
            kwargs = {**kwargs, "deterministic": key is None}
        return apply(*args, **kwargs)

    return nn.intercept_methods(call)


def _needs_mode(context: nn.module.InterceptorContext, args: tuple, kwargs: dict) -> bool:
    """Returns whether a call of a layer with dropout leaves `deterministic` open.

    Raises:
      UserError: The layer has a rate above 0 and sets `deterministic` itself.
    """
    module = context.module
    rate = next((name for kind, name in _DROPOUT.items() if isinstance(module, kind)), None)
    if rate is None or context.method_name != "__call__":
        return False
    given = inspect.signature(type(module).__call__).bind(module, *args, **kwargs).arguments
    decides = module.deterministic is not None or given.get("deterministic") is not None
    if decides and getattr(module, rate) > 0:
        raise UserError(_DETERMINISTIC.format(type(module).__name__))
    # Attention without dropout needs no mode.
    return not decides and (isinstance(module, nn.Dropout) or getattr(module, rate) > 0)


class Layers(NamedTuple):
    """What a network consists of.

    Attributes:
      types: Path and type of each module that has arrays, in the order in which inputs pass.
      dropout: Names of flax's random streams of the layers with dropout; empty for a network
        without any.
    """

    types: dict[Path, type[nn.Module]]
    dropout: frozenset[str]


def layers_of(network: nn.Module, example: Any) -> Layers:
    """Returns what a network consists of.

    Raises:
      UserError: The network has arrays that are not parameters and would be lost, sets when it
        drops, draws other random numbers, or cannot be applied to an example.
    """
    types, streams_of = {}, []

    def record(call, args, kwargs, context):
        module = context.module
        types.setdefault(module.path, type(module))
        if isinstance(module, nn.BatchNorm):
            raise UserError(_OTHER_ARRAYS.format("['batch_stats']"))
        if _needs_mode(context, args, kwargs):
            streams_of.append(getattr(module, "rng_collection", "dropout"))
            kwargs = {**kwargs, "deterministic": True}
        return call(*args, **kwargs)

    def start_and_apply(x):
        variables = network.init(jax.random.key(0), x)
        network.apply(variables, x)  # without a key: `init` would share its key
        return variables

    try:
        with nn.intercept_methods(record):
            # The key is not created either: that would compile before an error is reported.
            variables = jax.eval_shape(start_and_apply, example)
    except UserError:
        raise
    except flax.errors.InvalidRngError as error:
        raise UserError(_RANDOM) from error
    except Exception as error:  # any exception of a user's module
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"The network cannot be applied to inputs of shape {shapes_of(example)} "
            f"({type(error).__name__}: {reason}); correct the module, or choose another model."
        ) from error
    if others := set(variables) - {"params"}:
        raise UserError(_OTHER_ARRAYS.format(sorted(others)))
    leaves = jax.tree_util.tree_leaves_with_path(variables["params"])
    owners = {tuple(part.key for part in path[:-1]) for path, _ in leaves}
    types = {path: kind for path, kind in types.items() if path in owners}
    if streams_of and any(issubclass(kind, BatchNorm) for kind in types.values()):
        raise UserError(_BOTH)
    return Layers(types, frozenset(streams_of))


def from_flax(
    body: nn.Module,
    head: nn.Module,
    input_shape: tuple[int, ...] | Mapping[str, tuple[int, ...]],
    *,
    reads_ids: bool | Mapping[str, bool] = False,
    tied: Path = (),
) -> Model:
    """Returns a `Model` made of two flax modules.

    Args:
      body: `[B, *input_shape] -> [B, d]`, or `[B, T, d]`; it may have no parameters. Where examples
        are dicts of arrays, it takes such a dict.
      head: `[B, d] -> outputs`, or `[B, T, d] -> outputs`.
      input_shape: The shape of one example; a dict of shapes if examples are dicts of arrays.
      reads_ids: Whether inputs are ids, int32; a dict with the same names if only some are.
      tied: The path of an array of the body that the head takes as second argument, such as an
        embedding; it belongs to the body.

    Raises:
      UserError: Body or head is not a flax.linen module, or is one that `layers_of` refuses.

    Example:
      >>> body = nn.Sequential([nn.Dense(8), nn.relu])
      >>> model = from_flax(body, nn.Dense(3), input_shape=(4,))
      >>> model.num_features, model.init(jax.random.key(0))["head"]["kernel"].shape
      (8, (8, 3))
    """
    for part, module in {"body": body, "head": head}.items():
        if not isinstance(module, nn.Module):
            kind = module if isinstance(module, type) else type(module)
            raise UserError(
                f"The network's {part} ({kind.__module__}.{kind.__qualname__}) is not a flax.linen "
                "module; write it with flax.linen, as flax.nnx keeps arrays in modules."
            )
    network = Split(body, head, tied)

    def example():
        return zero_example(input_shape, reads_ids)

    types, dropout = layers_of(network, jax.eval_shape(example))
    norms = {path for path, kind in types.items() if issubclass(kind, NORMALIZATION)}
    watchers = [path for path, kind in types.items() if issubclass(kind, BatchNorm)]
    watching = {path[0] for path in watchers}

    def init(key):
        with _dropping(None):
            return network.init(key, example())["params"]

    def variables(params, part, mask):
        """Returns the variables of a part: its arrays and, in training, the masks of BatchNorms."""
        arrays = {"params": params.get(part, {})}
        if mask is not None:
            masks = {(*path[1:], "mask"): mask for path in watchers if path[0] == part}
            arrays["examples"] = unflatten_dict(masks)
        return arrays

    def apply(module, arrays, key, *inputs):
        if not dropout:
            return module.apply(arrays, *inputs)
        own = None if key is None else streams.key_of(key, streams.DROPOUT, int(module is head))
        with _dropping(own):
            return module.apply(
                arrays, *inputs, rngs={} if own is None else dict.fromkeys(dropout, own)
            )

    def features(params, inputs, mask=None, key=None):
        return apply(body, variables(params, "body", mask), key, inputs)

    def apply_head(params, features, mask=None, key=None):
        arrays = [_at(tied, params["body"])] if tied else []
        return apply(head, variables(params, "head", mask), key, features, *arrays)

    def observe(params, inputs, mask):
        if not watching <= set(params):
            raise ValueError(
                "Running statistics belong to a model with body and head; for a dict of models use "
                "LocalTraining.of_models."
            )
        seen, x = {}, inputs
        for part, module in (("body", body), ("head", head))[: 2 if "head" in watching else 1]:
            x, state = module.apply(variables(params, part, mask), x, mutable=["observed"])
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
        input_shape=() if reads_ids or isinstance(input_shape, Mapping) else tuple(input_shape),
        is_adapter=lambda path: ADAPTER in path,
    )
